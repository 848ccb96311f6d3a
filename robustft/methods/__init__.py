"""The fine-tuning methods, one file each.

`METHODS` maps names to classes, those that other distributions bring among them;
`METHODS.register` adds one; `make_method(name, **options)` checks the options.
"""

from __future__ import annotations

from typing import Any

from robustft.errors import InputError
from robustft.methods.car_ft import CARFT
from robustft.methods.dive import DiVE
from robustft.methods.flyp import FLYP
from robustft.methods.flyp_replay import FLYPReplay
from robustft.methods.ft import FT
from robustft.methods.l2_sp import L2SP
from robustft.methods.linear_probe import LinearProbe
from robustft.methods.lipsum_ft import LipsumFT
from robustft.methods.lp_ft import LPFT
from robustft.methods.r_adapter import RAdapter
from robustft.methods.registry import Methods
from robustft.methods.snd import FLYPSnD, SnD
from robustft.methods.starft import StarFT
from robustft.methods.tpgm import TPGM
from robustft.methods.zero_shot import ZeroShot
from robustft.train.method import Method

__all__ = [
    "CARFT",
    "FLYP",
    "FT",
    "L2SP",
    "LPFT",
    "METHODS",
    "TPGM",
    "DiVE",
    "FLYPReplay",
    "FLYPSnD",
    "LinearProbe",
    "LipsumFT",
    "Method",
    "RAdapter",
    "SnD",
    "StarFT",
    "ZeroShot",
    "make_method",
]

METHODS = Methods(
    (
        ZeroShot,
        LinearProbe,
        FT,
        LPFT,
        FLYP,
        L2SP,
        CARFT,
        LipsumFT,
        StarFT,
        SnD,
        FLYPSnD,
        FLYPReplay,
        TPGM,
        RAdapter,
        DiVE,
    )
)


def make_method(name: str, **options: Any) -> Method:
    """The method `name` with its hyper-parameters.

    Errors: InputError for an unknown method or hyper-parameter, or a value out of range.
    """
    if name not in METHODS:
        raise InputError(f"method: got {name!r}, expected one of {', '.join(METHODS)}")
    return METHODS[name](**options)
