"""VRF: sample-wise output ensembling by the distance to the zero-shot failures.

    V     = { v_i : fine-tuned right, zero-shot wrong }     over the training set (arXiv 2411.06966)
    d(x)  = distance of x's fine-tuned feature to its k-th nearest row of V, k = max(1, ⌊p·|V|⌋)
    ω(x)  = σ(-(d(x) - a)/b)
    P(y|x) = ω(x)·softmax(z_ft/T_ft) + (1-ω(x))·softmax(z_zs/T_zs)

Nothing is trained. Close to samples on which the zero-shot model is known to fail the fine-tuned
model gets the weight; far from them the zero-shot model does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from robustft.accuracy import predict
from robustft.ensemble import vrf_file, vrf_fit, vrf_release
from robustft.ensemble._checks import (
    HasSplit,
    Samples,
    check_choice,
    check_flag,
    check_logits,
    check_matrix,
    check_positive,
    finite,
    spread_columns,
    subset_index,
)
from robustft.ensemble.output import mix
from robustft.ensemble.vrf_select import OMEGAS, Modulation, sample_weight, share_of
from robustft.errors import InputError, warn
from robustft.scalars import real, whole

if TYPE_CHECKING:
    from robustft.models.heads import Classifier
    from robustft.ops import FeatureBank


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
        omega: the weight's form, the paper's ablation: "sigmoid" above; "linear",
            clamp(b·(a - d), 0, 1); "binary", 1 where d < a and else 0 (b is not used).
        space: "probability" as above, or "logit": softmax(ω·z_ft/T_ft + (1-ω)·z_zs/T_zs).
        bank: "failures", or "all": V is the whole training set, the paper's other ablation.
        features: whose features distances are taken in, "finetuned" (the paper) or "zeroshot": what
            `fit_outputs` and `features_of` take. To `fit` and `predict_proba` give those.
        as_released: k and temperatures by the authors' code (`robustft.ensemble.vrf_release`), with
            a = 1.5 and b = 0.6 unless given. Its temperatures are of the split that is reported, so
            `fit_outputs` then takes a test split as validation data; otherwise it refuses one.

    Fitted attributes: `failures_`, V itself, [|V|, D] float32, `k_`, `a_`, `b_`,
    `temperature_finetuned_`, `temperature_zeroshot_`, `selection_` (a `Modulation`, or None).

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
        *,
        omega: str = "sigmoid",
        space: str = "probability",
        bank: str = "failures",
        features: str = "finetuned",
        as_released: bool = False,
    ) -> None:
        self.p = real("p", p)
        if not 0.0 < self.p <= 1.0:
            raise InputError(f"p: got {p}, expected a share above 0 and at most 1")
        self.k = None if k is None else whole("k", k)
        if self.k is not None and self.k < 1:
            raise InputError(f"k: got {k}, expected at least 1")
        check_choice("omega", omega, OMEGAS)
        check_choice("space", space, ("probability", "logit"))
        check_choice("bank", bank, ("failures", "all"))
        check_choice("features", features, ("finetuned", "zeroshot"))
        self.features, self.as_released = features, check_flag("as_released", as_released)
        if self.as_released and a is None and b is None:
            a, b = vrf_release.A, vrf_release.B
        if (a is None) != (b is None) and not (omega == "binary" and b is None):
            raise InputError(f"a, b: got a={a}, b={b}, expected both or neither")
        self.a = None if a is None else finite("a", a)
        self.b = None if b is None else check_positive("b", b)
        self.squared = check_flag("squared", squared)
        self.normalize = check_flag("normalize", normalize)
        self.calibrate = check_flag("calibrate", calibrate)
        self.omega, self.space, self.bank = omega, space, bank
        self.backend = backend

    @property
    def name(self) -> str:
        """ "vrf" and whatever departs from the method, as result lines call it: "vrf-logit"."""
        chosen = (self.omega, self.space, self.bank)
        usual = ("sigmoid", "probability", "failures")
        parts = [c for c, u in zip(chosen, usual, strict=True) if c != u]
        parts += ["zeroshot-features"] * (self.features == "zeroshot")
        return "-".join(["vrf", *parts, *["as-released"] * self.as_released])

    def features_of(self, finetuned: HasSplit, zeroshot: HasSplit) -> Tensor:
        """The features [N, D], of the two models' outputs, that this VRF takes distances in."""
        return (finetuned if self.features == "finetuned" else zeroshot).features

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
        train = Samples(features, logits_finetuned, logits_zeroshot, labels)
        val = Samples(val_features, val_logits_finetuned, val_logits_zeroshot, val_labels)
        return self._fit(train, None if all(part is None for part in val) else val)

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
        train = self._split_of(finetuned, zeroshot, "")
        if val_finetuned is not None and val_zeroshot is not None:
            return self._fit(train, self._split_of(val_finetuned, val_zeroshot, "val_"))
        if val_finetuned is not None or val_zeroshot is not None:
            raise InputError("val_finetuned, val_zeroshot: got one of them, expected both or none")
        return self._fit(train, None)

    def _fit(self, train: Samples, val: Samples | None) -> VRF:
        train.check("")
        if val is not None:
            val.check("val_", like=train)
        elif self.calibrate or self.a is None:
            raise InputError(
                "val_features, val_logits_finetuned, val_logits_zeroshot, val_labels: got None, "
                "expected validation data (needed unless calibrate=False and a and b are given)"
            )
        self.temperature_finetuned_ = self.temperature_zeroshot_ = 1.0
        if val is not None and self.calibrate:
            self.temperature_finetuned_, self.temperature_zeroshot_ = vrf_fit.temperatures(
                val, as_released=self.as_released
            )
        rows = self._prepare(train.features)
        if self.bank == "failures":
            rows = rows[vrf_fit.is_failure(train).to(rows.device)]
        if self.as_released:
            self.k = vrf_release.released_k(len(rows), len(train.labels))
        self._set_failures(rows)
        if self._bank is None:
            warn(
                "the fine-tuned model corrects no zero-shot error on the training set: there is "
                "no distance to go by, and both models get the weight 1/2"
            )
        return self._settle(val)

    def with_neighbor(
        self,
        *,
        p: float = 0.001,
        k: int | None = None,
        val_finetuned: HasSplit | None = None,
        val_zeroshot: HasSplit | None = None,
    ) -> VRF:
        """This fitted VRF with another neighbour: the same failures (not copied) and temperatures;
        a and b are chosen anew on the validation outputs, unless they were given.

        Errors: InputError as for the constructor and `fit_outputs`.
        """
        self._check_fitted()
        other = VRF(**{**{key: getattr(self, key) for key in vrf_file.OPTIONS}, "p": p, "k": k})
        other.backend = self.backend
        other.temperature_finetuned_ = self.temperature_finetuned_
        other.temperature_zeroshot_ = self.temperature_zeroshot_
        other.failures_, other._bank = self.failures_, self._bank
        other._set_k()
        val = None
        if val_finetuned is not None and val_zeroshot is not None:
            val = other._split_of(val_finetuned, val_zeroshot, "val_")
        return other._settle(val)

    def _settle(self, val: Samples | None) -> VRF:
        """Take a and b as they were given, or choose them."""
        self.selection_ = None
        if self._bank is None:
            self.a_, self.b_ = 0.0, 1.0
        elif self.a is not None:
            self.a_, self.b_ = self.a, 1.0 if self.b is None else self.b
        elif val is not None:
            self.selection_ = vrf_fit.modulation(
                self.distance(val.features),
                val,
                (self.temperature_finetuned_, self.temperature_zeroshot_),
                space=self.space,
                omega=self.omega,
            )
            self.a_, self.b_ = self.selection_.a, self.selection_.b
        else:
            raise InputError("a, b: got None, expected them or validation data to choose them on")
        return self

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
        return self.weight_at(self.distance(features))

    def weight_at(self, distance: Tensor) -> Tensor:
        """ω of distances [N], as `distance` gives them."""
        if self._bank is None:
            return torch.full_like(distance, 0.5)
        return sample_weight(distance, self.a_, self.b_, self.omega)

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
        return self.mix(
            self.distance(features),
            logits_finetuned,
            logits_zeroshot,
            class_subset=class_subset,
            log=log,
        )

    def mix(
        self,
        distance: Tensor,
        logits_finetuned: Tensor,
        logits_zeroshot: Tensor,
        *,
        class_subset: Tensor | Sequence[int] | None = None,
        log: bool = False,
    ) -> Tensor:
        """`predict_proba` where the distances [N] are known already (`distance`)."""
        from robustft.ops import vrf_mix

        classes = logits_finetuned.shape[1]
        index = subset_index(class_subset, classes)
        if index is not None:
            logits_finetuned = logits_finetuned[:, index.to(logits_finetuned.device)]
            logits_zeroshot = logits_zeroshot[:, index.to(logits_zeroshot.device)]
        fill = -math.inf if log else 0.0
        if self.omega != "sigmoid" or self.space != "probability":
            log_p = mix(
                logits_finetuned,
                logits_zeroshot,
                self.weight_at(distance),
                temperatures=(self.temperature_finetuned_, self.temperature_zeroshot_),
                space=self.space,
            )
            return spread_columns(log_p if log else log_p.exp(), index, classes, fill)
        distance = distance.to(logits_finetuned.device)
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
        return spread_columns(mixed, index, classes, fill)

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
        """Write one safetensors file: the failures, and everything else, with a checksum."""
        self._check_fitted()
        vrf_file.write(path, vars(self))

    def export(
        self,
        folder: str | Path,
        zero_shot: Classifier | None = None,
        fine_tuned: Classifier | None = None,
        classnames: Sequence[str] = (),
        *,
        onnx: bool | None = None,
    ) -> None:
        """Write a folder that runs without robustft (`robustft.ensemble.vrf_export` lists it).

        zero_shot, fine_tuned: give both, and images to probabilities is written too, by
        torch.export; an encoder that both share runs once. onnx: also as ONNX; None where the
        packages are there. The folder appears as a whole.

        Errors: InputError before `fit`, for one model of two, or a folder that holds anything
        else; MissingExtraError for onnx=True without the packages.
        """
        from robustft.ensemble.vrf_export import export_vrf

        self._check_fitted()
        export_vrf(vars(self), folder, zero_shot, fine_tuned, classnames, onnx)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | torch.device = "cpu", backend: str = "auto"
    ) -> VRF:
        """Read what `save` wrote; predictions are the same bit for bit on the same backend.

        Errors: OSError for a file that is not there; InputError, naming the file, for one that is
        no VRF, has been changed (one byte is enough), or holds what no VRF has.
        """
        saved = vrf_file.read(path)
        try:
            vrf = cls(**saved.options, backend=backend)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        for name, value in saved.fitted.items():
            setattr(vrf, name, value)
        vrf._set_failures(saved.failures.to(device))
        return vrf

    def _prepare(self, features: Tensor) -> Tensor:
        rows = features.detach().float()
        return F.normalize(rows, dim=1) if self.normalize else rows

    def _set_failures(self, failures: Tensor) -> None:
        from robustft.ops import FeatureBank

        count = len(failures)
        self._bank = FeatureBank(failures) if count else None
        self.failures_ = failures if self._bank is None else self._bank.rows  # one copy, not two
        self._set_k()

    def _set_k(self) -> None:
        count = len(self.failures_)
        wanted = self.k if self.k is not None else share_of(self.p, count)
        self.k_ = max(1, min(wanted, count))

    def _split_of(self, finetuned: HasSplit, zeroshot: HasSplit, prefix: str) -> Samples:
        features = self.features_of(finetuned, zeroshot)
        reported = self.as_released and prefix == "val_"
        return vrf_fit.samples_of(finetuned, zeroshot, features, prefix, reported=reported)

    def _check_fitted(self) -> None:
        if not hasattr(self, "failures_"):
            raise InputError("this VRF is not fitted: call fit or load first")
