"""What the native functions can see to be wrong is a ValueError that names it, never a crash."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("native")

KEPT = torch.randn(64, 64)  # an address of 16 KB that stays
AT = KEPT.data_ptr()


def refused(message: str, name: str, arguments: dict[str, Any]) -> None:
    from robustft import _native

    with pytest.raises(ValueError, match=message):
        getattr(_native, name)(*arguments.values())


FIND: dict[str, Any] = {
    "rows": AT,
    "stride": 4,
    "count": 8,
    "dim": 4,
    "mean": AT,
    "panels": 0,
    "constants": 0,
    "queries": AT,
    "query_stride": 4,
    "query_count": 2,
    "k": 3,
    "threads": 1,
    "distances": AT,
    "indices": 0,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k: got 0, expected 1 to 8"),
        ({"k": 9}, "k: got 9, expected 1 to 8"),
        ({"k": -(2**40)}, "k: got -1099511627776"),
        ({"count": 0}, "count: got 0"),
        ({"count": 2**32}, "count: got 4294967296"),
        ({"dim": -4}, "dim: got -4, expected 1 or more"),
        ({"query_count": -1}, "query_count: got -1"),
        ({"query_count": 2**31}, "query_count: got 2147483648"),
        ({"rows": 0}, "rows: got 0, expected an address"),
        ({"queries": 0}, "queries: got 0"),
        ({"panels": AT}, "constants: got 0"),
    ],
)
def test_nearest_find(changes: dict[str, int], message: str) -> None:
    refused(message, "nearest_find", FIND | changes)


def test_nearest_pack_and_layout() -> None:
    arguments = {"rows": AT, "stride": 4, "count": 8, "dim": 4, "threads": 1, "mean": AT}
    arguments |= {"panels": AT, "constants": AT}
    refused("count: got -8", "nearest_pack", arguments | {"count": -8})
    refused("dim: got 0", "nearest_pack", arguments | {"dim": 0})
    refused("panels: got 0", "nearest_pack", arguments | {"panels": 0})
    refused("rows: got -1", "nearest_layout", {"rows": -1, "dim": 4})


NCE: dict[str, Any] = {
    "x": AT,
    "x_stride": 4,
    "y": AT,
    "y_stride": 4,
    "rows": 8,
    "columns": 8,
    "dim": 4,
    "dtype": 0,
    "row_labels": 0,
    "column_labels": 0,
    "mask": 0,
    "ignore_index": -100,
    "scale": 1.0,
    "margin": 0.0,
    "smoothing": 0.0,
    "symmetric": True,
    "exclude_self": False,
    "threads": 1,
    "kept": 0,
    "loss": AT,
    "row_statistics": AT,
    "column_statistics": AT,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 3}, r"dtype: got 3, expected 0 \(float32\)"),
        ({"dtype": -1}, "dtype: got -1"),
        ({"rows": 0}, "rows: got 0, expected 1 or more"),
        ({"exclude_self": True}, "row_labels: got 0"),
        ({"exclude_self": True, "mask": AT, "columns": 9}, "columns: got 9, expected 8"),
        (
            {"exclude_self": True, "mask": AT, "columns": 7, "symmetric": False},
            "columns: got 7, expected 8",
        ),
        ({"columns": -8}, "columns: got -8"),
        ({"columns": 7}, "columns: got 7, expected 8, as many as rows"),
        ({"row_labels": AT}, "column_labels: got 0"),
        ({"x": 0}, "x: got 0, expected an address"),
        ({"loss": 0}, "loss: got 0"),
        ({"column_statistics": 0}, "column_statistics: got 0"),
    ],
)
def test_mpm_nce_forward(changes: dict[str, int], message: str) -> None:
    refused(message, "mpm_nce_forward", NCE | changes)


def test_mpm_nce_products_room() -> None:
    refused("count: got -1", "mpm_nce_products_room", {"count": -1})


def test_dive_and_vrf() -> None:
    matrices = {f"{kind}{i}": value for i in range(4) for kind, value in (("at", AT), ("by", 4))}
    rest = {"rows": 8, "dim": 4, "dtype": 0, "normalize": True, "threads": 1}
    results = {"mean": AT, "momentum": 0.9, "avl": AT, "pvl": AT, "new_mean": AT}
    dive = matrices | rest | results
    refused("rows: got 0", "dive_forward", dive | {"rows": 0})
    refused("dtype: got 9", "dive_forward", dive | {"dtype": 9})
    refused("features: got 0", "dive_forward", dive | {"at2": 0})
    vrf: dict[str, Any] = {"finetuned": AT, "by": 4, "zeroshot": AT, "zeroshot_by": 4}
    vrf |= {"distance": AT, "rows": 8, "classes": 4, "a": 1.0, "b": 1.0, "t": 1.0, "t0": 1.0}
    vrf |= {"dtype": 0, "log": False, "threads": 1, "out": AT}
    refused("classes: got 0", "vrf_forward", vrf | {"classes": 0})
    refused("dtype: got 4", "vrf_forward", vrf | {"dtype": 4})
    refused("rows: got -1", "vrf_forward", vrf | {"rows": -1})


def test_rsa() -> None:
    arguments: dict[str, Any] = {"a": AT, "a_squares": AT, "a_dim": 4, "a_shift": 0.0}
    arguments |= {"b": AT, "b_squares": AT, "b_dim": 4, "b_shift": 0.0}
    arguments |= {"rows": 8, "cosine": False, "threads": 1, "sums": AT}
    refused("rows: got 0", "rsa_moments", arguments | {"rows": 0})
    refused("b_dim: got -4", "rsa_moments", arguments | {"b_dim": -4})
    pack: dict[str, Any] = {"rows": AT, "stride": 4, "dtype": 7, "count": 8, "dim": 4, "mean": AT}
    pack |= {"factors": AT, "scale": 1.0, "threads": 1, "panels": AT, "squares": AT}
    refused("dtype: got 7", "rsa_pack", pack)
