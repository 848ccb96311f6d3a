"""Whole training steps of a real tower: what the loss, DiVE's reference pairs and savings cost.

The floor is both towers' forward and backward passes on PAIRS pairs, without a loss. Cases count
the operations of the towers on their own number of pairs, so that "× towers" is a time over that of
the towers on as many pairs: for a loss alone its share beside the towers (0.01: one percent). VRF's
evaluation has no tower: its features are given, and its floor is the search's product.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import probes
from benchmarks.harness import Call, Case, Factory, Probe, robustft
from benchmarks.mpm_nce import EAGER, Batch, ours
from benchmarks.nearest import Data
from robustft.features import FeatureStore, Rows
from robustft.features.rows import VALUES
from robustft.features.store import Part
from robustft.losses import CLIPLoss
from robustft.methods import make_method
from robustft.methods.dive import DiVEModule
from robustft.methods.frozen import frozen_texts
from robustft.models import copy_clip, load_clip
from robustft.ops import FeatureBank, kth_distance, vrf_mix
from robustft.train import TrainConfig, recompute

SHAPE = "B"  # of the losses alone
QUICK = [(64,), (1024,)]
DEFAULT = [(64,), (256,), (1024,), (4096,)]
FULL = [(64,), (128,), (256,), (512,), (1024,), (2048,), (4096,), (8192,)]
MODEL = "ViT-B-32"
PAIRS = 16  # of the floor, and of a FLYP or DiVE step with as many reference pairs
LARGE, CHUNK = 32, 8  # pairs of a step whose memory is to be saved, and of a chunk
QUICKER = 4  # times fewer pairs
STORED = 8192  # reference pairs in the store


def cases(shapes: list[tuple[int, ...]], device: str, quick: bool) -> Iterator[Case]:
    part = QUICKER if quick else 1
    world = World(device, PAIRS // part)
    for (pairs,) in shapes:
        yield _loss(world, pairs)
    yield _methods(world, PAIRS // part)
    yield _savings(world, LARGE // part, CHUNK // part, compiled=not quick)
    del world
    yield _evaluation(device, *((2000, 20_000) if quick else (50_000, 100_000)))


class World:
    """A model with random weights, the copy of it that is trained, and pairs for both."""

    def __init__(self, device: str, probe: int) -> None:
        torch.manual_seed(0)
        self.device, self.probe = device, probe
        self.clip = load_clip(MODEL, device=device)
        self.tuned = copy_clip(self.clip)
        self.model: Any = self.tuned.model
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self._shape = self.clip.preprocess_val(Image.new("RGB", (8, 8))).shape
        self._folder = tempfile.TemporaryDirectory()
        self._rows: dict[str, Rows] = {}

    def pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """Images of noise and captions of as many tokens as they may have."""
        words = " ".join(["robust"] * 200)
        tokens = self.clip.tokenizer([words]).expand(count, -1).contiguous()
        return torch.randn(count, *self._shape, device=self.device), tokens.to(self.device)

    @functools.cached_property
    def operations(self) -> float:
        """Of both towers' passes, for one pair."""
        image, text = self.pairs(1)
        with FlopCounterMode(display=False) as counter:
            self._passes(image, text)
        self.optimizer.zero_grad()
        return float(counter.get_total_flops())

    @functools.cached_property
    def towers(self) -> Probe:
        image, text = self.pairs(self.probe)

        def call() -> None:
            self._passes(image, text)
            self.optimizer.zero_grad()

        return Probe(call, self.probe * self.operations)

    def _passes(self, image: Tensor, text: Tensor) -> None:
        found = self.model.encode_image(image), self.model.encode_text(text)
        torch.autograd.backward(found, tuple(torch.ones_like(x) for x in found))

    def stored(self, kind: str) -> Rows:
        """Features as those of STORED reference pairs, on disk."""
        if kind not in self._rows:
            width = self.clip.embed_dim

            def compute(ranges: Iterator[range]) -> Iterator[tuple[range, Part]]:
                for rows in ranges:
                    yield rows, {VALUES: torch.randn(len(rows), width)}

            store = FeatureStore(self._folder.name)
            self._rows[kind] = store.rows(kind, {}, STORED, compute, data="noise")
        return self._rows[kind]

    def contrast(self, criterion: Callable[..., Tensor], pairs: int) -> Callable[[], Tensor]:
        """FLYP's loss of a batch, as a function that runs both towers."""
        image, text = self.pairs(pairs)

        def loss() -> Tensor:
            found = self.model.encode_image(image), self.model.encode_text(text)
            unit = (F.normalize(x, dim=-1) for x in found)
            return criterion(*unit, self.model.logit_scale.exp())

        return loss

    def step(self, loss: Callable[[], Tensor], chunk: int | None = None) -> Call:
        """A training step on a loss of the tuned model."""

        def call() -> list[Tensor]:
            with recompute.chunked(self.model, chunk):
                value = loss()
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return [value.detach()]

        return call

    def case(self, variant: str, pairs: int, providers: dict[str, Factory], **more: Any) -> Case:
        """Of `pairs` pairs, beside the towers."""
        return Case(
            op="step",
            variant=variant,
            shape=str(pairs),
            dtype="float32",
            amount=pairs * self.operations,
            unit="GFLOP/s",
            probes={"towers": self.towers},
            providers=providers,
            **{"mode": "forward+backward", **more},
        )


def _loss(world: World, pairs: int) -> Case:
    """The loss alone, of features that are there."""
    batch = Batch.of("InfoNCE", pairs, pairs, 512, torch.float32, world.device, True)
    eager = EAGER["InfoNCE"](batch)
    providers: dict[str, Factory] = {
        "torch eager": lambda: lambda: batch.step(eager),
        "open_clip ClipLoss": lambda: functools.partial(batch.step, _open_clip()),
        **robustft(
            "mpm_nce",
            world.device,
            torch.float32,
            functools.partial(ours, batch, keep_logits=1 << 62),
        ),
    }
    return world.case("loss alone", pairs, providers, truth=batch.truth)


def _methods(world: World, pairs: int) -> Case:
    """FLYP, and DiVE whose frozen features are computed in each step, or read from a store."""
    dive = make_method("dive")
    module = DiVEModule(world.tuned, world.clip, ["cat"], ["a {}."], dive.config)
    target, reference = world.pairs(pairs), world.pairs(pairs)
    batch = {"image": target[0], "text": target[1], "label": torch.zeros(pairs).long()}
    batch |= {"ref_image": reference[0], "ref_text": reference[1]}

    def teacher() -> Tensor:
        known = {"ref_text_pretrained": frozen_texts(world.clip, batch["ref_text"])}
        return dive.loss(module, batch | known)[0]

    def store() -> Tensor:
        index = torch.randint(STORED, (pairs,))
        known = {
            f"ref_{kind}_pretrained": world.stored(kind)[index].to(world.device)
            for kind in ("image", "text")
        }
        return dive.loss(module, batch | known)[0]

    return world.case(
        "with AdamW",
        pairs,
        {
            "open_clip ClipLoss": lambda: world.step(world.contrast(_open_clip(), pairs)),
            "robustft flyp": lambda: world.step(world.contrast(CLIPLoss(), pairs)),
            "robustft dive, teacher": lambda: world.step(teacher),
            "robustft dive, store": lambda: world.step(store),
        },
        mode="training step",
    )


def _savings(world: World, pairs: int, chunk: int, *, compiled: bool) -> Case:
    """FLYP's step at once, in chunks, with checkpoints and compiled."""
    loss = world.contrast(CLIPLoss(), pairs)

    def saving(size: int | None = None, **settings: bool) -> Factory:
        config = TrainConfig(**settings)

        def prepare() -> Call:
            step = world.step(loss, size)

            def call() -> object:
                recompute.begin(world.model, config)
                try:
                    return step()
                finally:
                    recompute.end(world.model, config)

            return call

        return prepare

    providers = {
        "robustft flyp": saving(),
        f"robustft grad_cache {chunk}": saving(chunk),
        "robustft grad_checkpointing": saving(grad_checkpointing=True),
        "robustft both": saving(chunk, grad_checkpointing=True),
    }
    if compiled:
        providers["robustft torchcompile"] = saving(torchcompile=True)
    return world.case("large batch", pairs, providers, mode="training step")


def _evaluation(device: str, images: int, failures: int) -> Case:
    """VRF's evaluation with features and logits given: the distance of each image to its k-th
    nearest failure, k a thousandth of them, and the mixture."""
    width, classes = 512, 1000
    data = Data(failures, width, images, device)
    logits = [torch.randn(images, classes, device=device) for _ in range(2)]
    bank, k = FeatureBank(data.rows), max(1, failures // 1000)

    def mixed(distance: Tensor) -> list[Tensor]:
        weight = torch.sigmoid(-(distance - 1.5) / 0.6)[:, None]
        return [weight * logits[0].softmax(1) + (1 - weight) * logits[1].softmax(1)]

    def faiss() -> Call:
        index: Any = data.faiss
        queries = data.queries.cpu().numpy()
        return lambda: mixed(torch.from_numpy(index.search(queries, k)[0][:, -1]).sqrt())

    def mine() -> list[Tensor]:
        return [vrf_mix(logits[0], logits[1], kth_distance(data.queries, bank, k), 1.5, 0.6)]

    return Case(
        op="step",
        variant="VRF's evaluation",
        mode="search and mixture",
        shape=f"{images:,} images, {failures:,} failures",
        dtype="float32",
        amount=2.0 * images * failures * width,
        unit="GFLOP/s",
        probes={"torch.mm": probes.product(data.queries[:2000], data.rows, torch.float32)},
        providers={
            **({} if device == "cuda" else {"FAISS IndexFlatL2 + torch": faiss}),
            "robustft": lambda: mine,
        },
    )


def _open_clip() -> Callable[..., Tensor]:
    from open_clip.loss import ClipLoss

    loss: Callable[..., Tensor] = ClipLoss()
    return loss
