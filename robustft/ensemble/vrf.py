"""VRF: sample-wise output ensembling by the distance to the zero-shot failures.

    V     = { v_i : fine-tuned right, zero-shot wrong }     over the training set (arXiv 2411.06966)
    d(x)  = distance of x's fine-tuned feature to its k-th nearest row of V, k = max(1, ⌊p·|V|⌋)
    ω(x)  = σ(-(d(x) - a)/b)
    P(y|x) = ω(x)·softmax(z_ft/T_ft) + (1-ω(x))·softmax(z_zs/T_zs)

Nothing is trained. Close to samples on which the zero-shot model is known to fail the fine-tuned
model gets the weight; far from them the zero-shot model does.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustft import files
from robustft.accuracy import correct, predict
from robustft.ensemble._checks import (
    HasSplit,
    check_finite,
    check_labels,
    check_logits,
    check_matrix,
    check_positive,
    check_selection_split,
    spread_columns,
    subset_index,
)
from robustft.ensemble.calibrate import matching_temperature
from robustft.ensemble.select import check_same_samples
from robustft.ensemble.vrf_select import Modulation, choose_modulation, sample_weight
from robustft.errors import InputError, InputTypeError
from robustft.extras import require

if TYPE_CHECKING:
    from robustft.ops import FeatureBank

_FORMAT = 1


class VRF:
    """The estimator: `fit` once, then `predict_proba`.

    Args:
        p: k as a share of the failures; 0.001 (0.1 %) is the paper's.
        k: the neighbour itself, instead of p; cut to the number of failures.
        squared: squared L2 distances, as in the release and as the published a and b expect.
        normalize: L2-normalise the features first (the paper). False takes them as they are.
        calibrate: give each model the temperature at which its mean confidence equals its
            accuracy on validation data. The release calibrates on the reported split and the
            paper's text does not mention it; False keeps both temperatures at 1.
        a, b: the published values can be passed (ImageNet, squared distance: a=1.5, b=0.6). None
            chooses both on validation data, see `robustft.ensemble.vrf_select`. Give both or none.
        backend: of `kth_distance` and `vrf_mix`.

    Fitted attributes: `failures_` [|V|, D] float32, `k_`, `a_`, `b_`, `temperature_finetuned_`,
    `temperature_zeroshot_`, `selection_` (a `Modulation`, or None).

    Without a single failure the distance has no meaning: `fit` warns, and ω is ½ for every
    sample, the limit of the formula for large b.
    """

    failures_: Tensor
    k_: int
    a_: float
    b_: float
    temperature_finetuned_: float
    temperature_zeroshot_: float
    selection_: Modulation | None
    _bank: FeatureBank | None

    def __init__(
        self,
        p: float = 0.001,
        k: int | None = None,
        squared: bool = True,
        normalize: bool = True,
        calibrate: bool = True,
        a: float | None = None,
        b: float | None = None,
        backend: str = "auto",
    ) -> None:
        if not 0.0 < p <= 1.0:
            raise InputError(f"p: got {p}, expected a share above 0 and at most 1")
        if k is not None and (not isinstance(k, int) or isinstance(k, bool)):
            raise InputTypeError(f"k: got {type(k).__name__}, expected an int or None")
        if k is not None and k < 1:
            raise InputError(f"k: got {k}, expected at least 1")
        if (a is None) != (b is None):
            raise InputError(f"a, b: got a={a}, b={b}, expected both or neither")
        if a is not None and not math.isfinite(a):
            raise InputError(f"a: got {a}, expected a finite number")
        if b is not None:
            check_positive("b", b)
        self.p = p
        self.k = k
        self.squared = squared
        self.normalize = normalize
        self.calibrate = calibrate
        self.a = a
        self.b = b
        self.backend = backend

    def fit(
        self,
        features: Tensor,
        logits_finetuned: Tensor,
        logits_zeroshot: Tensor,
        labels: Tensor,
        *,
        val_features: Tensor | None = None,
        val_logits_finetuned: Tensor | None = None,
        val_logits_zeroshot: Tensor | None = None,
        val_labels: Tensor | None = None,
    ) -> VRF:
        """Collect the failures on the training set; calibrate and choose a, b on validation data.

        Args:
            features: [N, D] image features of the fine-tuned model on the training set, seen
                with the evaluation transform.
            logits_finetuned, logits_zeroshot: [N, C]; labels: int [N].
            val_*: the same of an in-distribution validation split (never the test split). May be
                left out only with `calibrate=False` and given a and b.

        Returns: self.

        Errors: InputError for shapes, labels out of range, values that are not finite, or
        validation data that are needed and missing.
        """
        _check_outputs("", features, logits_finetuned, logits_zeroshot, labels)
        classes = logits_finetuned.shape[1]
        val = (val_features, val_logits_finetuned, val_logits_zeroshot, val_labels)
        has_val = any(x is not None for x in val)
        if has_val:
            _check_outputs("val_", *val, columns=features.shape[1], classes=classes)
        elif self.calibrate or self.a is None:
            raise InputError(
                "val_features, val_logits_finetuned, val_logits_zeroshot, val_labels: got None, "
                "expected validation data (needed unless calibrate=False and a and b are given)"
            )

        right = correct(logits_finetuned, labels).cpu()
        wrong = ~correct(logits_zeroshot, labels).cpu()
        failures = self._prepare(features)[(right & wrong).to(features.device)]

        self.temperature_finetuned_ = self.temperature_zeroshot_ = 1.0
        if self.calibrate:
            assert val_logits_finetuned is not None
            assert val_logits_zeroshot is not None
            assert val_labels is not None
            self.temperature_finetuned_ = matching_temperature(val_logits_finetuned, val_labels)
            self.temperature_zeroshot_ = matching_temperature(val_logits_zeroshot, val_labels)
        self._set_failures(failures)
        self.selection_ = None
        if self._bank is None:
            warnings.warn(
                "the fine-tuned model corrects no zero-shot error on the training set: there is "
                "no distance to go by, and both models get the weight 1/2",
                stacklevel=2,
            )
            self.a_, self.b_ = 0.0, 1.0
        elif self.a is not None and self.b is not None:
            self.a_, self.b_ = float(self.a), float(self.b)
        else:
            assert val_features is not None
            assert val_logits_finetuned is not None
            assert val_logits_zeroshot is not None
            assert val_labels is not None
            distance = self.distance(val_features)
            device = distance.device
            self.selection_ = choose_modulation(
                distance,
                _softmax(val_logits_finetuned.to(device), self.temperature_finetuned_),
                _softmax(val_logits_zeroshot.to(device), self.temperature_zeroshot_),
                val_labels.to(device),
            )
            self.a_, self.b_ = self.selection_.a, self.selection_.b
        return self

    def fit_outputs(
        self,
        finetuned: HasSplit,
        zeroshot: HasSplit,
        *,
        val_finetuned: HasSplit | None = None,
        val_zeroshot: HasSplit | None = None,
    ) -> VRF:
        """`fit` on `robustft.evaluate.Outputs` of both models.

        Errors: as `fit`, and InputError where any of them comes from a test split or the two
        models' outputs are of different samples.
        """
        check_selection_split("finetuned", finetuned)
        check_selection_split("zeroshot", zeroshot)
        check_same_samples(finetuned, zeroshot)
        val: dict[str, Tensor] = {}
        if (val_finetuned is None) != (val_zeroshot is None):
            raise InputError("val_finetuned, val_zeroshot: got one of them, expected both or none")
        if val_finetuned is not None and val_zeroshot is not None:
            check_selection_split("val_finetuned", val_finetuned)
            check_selection_split("val_zeroshot", val_zeroshot)
            check_same_samples(val_finetuned, val_zeroshot)
            val = {
                "val_features": val_finetuned.features,
                "val_logits_finetuned": val_finetuned.logits,
                "val_logits_zeroshot": val_zeroshot.logits,
                "val_labels": val_finetuned.labels,
            }
        return self.fit(
            finetuned.features, finetuned.logits, zeroshot.logits, finetuned.labels, **val
        )

    def distance(self, features: Tensor) -> Tensor:
        """d(x) of features [N, D]: [N] float32, on the failures' device; inf without failures."""
        self._check_fitted()
        check_matrix("features", features, columns=self.failures_.shape[1])
        queries = self._prepare(features).to(self.failures_.device)
        if self._bank is None:
            return queries.new_full((len(queries),), math.inf)
        from robustft.ops import kth_distance

        return kth_distance(
            queries, self._bank, self.k_, squared=self.squared, backend=self.backend
        )

    def weight(self, features: Tensor) -> Tensor:
        """ω(x), the share of the fine-tuned model, of features [N, D]: [N] float32."""
        distance = self.distance(features)
        if self._bank is None:
            return torch.full_like(distance, 0.5)
        return sample_weight(distance, self.a_, self.b_)

    def predict_proba(
        self,
        features: Tensor,
        logits_finetuned: Tensor,
        logits_zeroshot: Tensor,
        *,
        class_subset: Tensor | Sequence[int] | None = None,
        log: bool = False,
    ) -> Tensor:
        """P(y|x): [N, C], rows sum to 1.

        Args:
            features: [N, D] of the fine-tuned model; logits: [N, C] of both models, for the
                training set's classes or any others: ω does not depend on them.
            class_subset: class indices of data sets that have some of the classes only: the
                others are taken out before the softmax and come back with probability 0.
            log: return log-probabilities.

        A sample whose features or logits hold a NaN gets NaN.
        """
        self._check_fitted()
        check_matrix("features", features, columns=self.failures_.shape[1])
        check_logits("logits_finetuned", logits_finetuned, len(features))
        check_logits("logits_zeroshot", logits_zeroshot, *logits_finetuned.shape)
        from robustft.ops import vrf_mix

        classes = logits_finetuned.shape[1]
        index = subset_index(class_subset, classes)
        if index is not None:
            logits_finetuned = logits_finetuned[:, index.to(logits_finetuned.device)]
            logits_zeroshot = logits_zeroshot[:, index.to(logits_zeroshot.device)]
        distance = self.distance(features).to(logits_finetuned.device)
        a, b = self.a_, self.b_
        if self._bank is None:
            distance, a, b = torch.zeros_like(distance), 0.0, 1.0  # ω = ½
        mixed = vrf_mix(
            logits_finetuned,
            logits_zeroshot,
            distance,
            a,
            b,
            temperature_finetuned=self.temperature_finetuned_,
            temperature_zeroshot=self.temperature_zeroshot_,
            log=log,
            backend=self.backend,
        )
        return spread_columns(mixed, index, classes, -math.inf if log else 0.0)

    def predict(
        self,
        features: Tensor,
        logits_finetuned: Tensor,
        logits_zeroshot: Tensor,
        *,
        class_subset: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """The most probable class of each sample, int64 [N]; -1 where a NaN leaves none."""
        return predict(
            self.predict_proba(
                features, logits_finetuned, logits_zeroshot, class_subset=class_subset
            )
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the failures, and everything else in its metadata."""
        self._check_fitted()
        safetensors = require("safetensors.torch", extra="openclip")
        state = {
            "format": _FORMAT,
            "p": self.p,
            "k": self.k,
            "squared": self.squared,
            "normalize": self.normalize,
            "calibrate": self.calibrate,
            "a": self.a,
            "b": self.b,
            "a_": self.a_,
            "b_": self.b_,
            "temperature_finetuned_": self.temperature_finetuned_,
            "temperature_zeroshot_": self.temperature_zeroshot_,
            "selection_": None if self.selection_ is None else vars(self.selection_),
        }
        with files.replacing(path) as temporary:
            safetensors.save_file(
                {"failures": self.failures_.cpu().contiguous()},
                str(temporary),
                metadata={"robustft.vrf": json.dumps(state)},
            )

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | torch.device = "cpu", backend: str = "auto"
    ) -> VRF:
        """Read what `save` wrote; predictions are the same bit for bit on the same backend.

        Errors: OSError for a file that is not there, InputError for one that is no VRF.
        """
        path = Path(path)
        safetensors = require("safetensors", extra="openclip")
        with open(path, "rb"):
            pass  # an OSError that names the file, where safetensors has its own
        try:
            with safetensors.safe_open(str(path), framework="pt", device=str(device)) as file:
                state = json.loads((file.metadata() or {})["robustft.vrf"])
                failures = file.get_tensor("failures")
        except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: got a file that VRF.save did not write ({error})") from error
        if state.get("format") != _FORMAT:
            raise InputError(f"{path}: got format {state.get('format')}, expected {_FORMAT}")
        vrf = cls(
            **{key: state[key] for key in _OPTIONS},
            backend=backend,
        )
        for key in _NUMBERS:
            setattr(vrf, key, state[key])
        selection = state["selection_"]
        vrf.selection_ = None if selection is None else Modulation(**selection)
        vrf._set_failures(failures)
        return vrf

    def _prepare(self, features: Tensor) -> Tensor:
        rows = features.detach().float()
        return F.normalize(rows, dim=1) if self.normalize else rows

    def _set_failures(self, failures: Tensor) -> None:
        from robustft.ops import FeatureBank

        count = len(failures)
        self._bank = FeatureBank(failures) if count else None
        self.failures_ = failures if self._bank is None else self._bank.rows  # one copy, not two
        # The small term: 0.29 · 100 is 28.999… in floating point.
        wanted = self.k if self.k is not None else math.floor(self.p * count + 1e-9)
        self.k_ = max(1, min(wanted, count))

    def _check_fitted(self) -> None:
        if not hasattr(self, "failures_"):
            raise InputError("this VRF is not fitted: call fit or load first")


_OPTIONS: tuple[str, ...] = ("p", "k", "squared", "normalize", "calibrate", "a", "b")
_NUMBERS: tuple[str, ...] = (
    "a_",
    "b_",
    "temperature_finetuned_",
    "temperature_zeroshot_",
)


def _softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits.float() / temperature).softmax(dim=1)


def _check_outputs(
    prefix: str,
    features: Any,
    logits_finetuned: Any,
    logits_zeroshot: Any,
    labels: Any,
    *,
    columns: int | None = None,
    classes: int | None = None,
) -> None:
    check_matrix(f"{prefix}features", features, columns=columns)
    rows = len(features)
    check_logits(f"{prefix}logits_finetuned", logits_finetuned, rows, classes)
    check_logits(f"{prefix}logits_zeroshot", logits_zeroshot, rows, logits_finetuned.shape[1])
    check_labels(f"{prefix}labels", labels, rows, logits_finetuned.shape[1])
    check_finite(f"{prefix}features", features)
    check_finite(f"{prefix}logits_finetuned", logits_finetuned)
    check_finite(f"{prefix}logits_zeroshot", logits_zeroshot)
