"""The training loop: stages of steps on Accelerate, resumable at any step.

Step k of a run is a function of the configuration and of the state after step k - 1, of nothing
else: order, captions, augmentation and random masks are all derived from (seed, epoch, index) or
(seed, step). A run that was stopped and resumed therefore ends, on a CPU, with the same bits.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustft.errors import InputError
from robustft.extras import require
from robustft.files import write_json
from robustft.models import Classifier, Clip, evaluating, save_classifier
from robustft.train import checkpoint
from robustft.train.batches import (
    Batch,
    Captions,
    Features,
    References,
    Samples,
    in_memory,
    reference_batches,
    stream,
    tokenize,
)
from robustft.train.config import PRECISIONS, Stage, TrainConfig
from robustft.train.interrupt import Interrupts
from robustft.train.log import Log
from robustft.train.order import Order, mix
from robustft.train.schedule import cosine_schedule, fit_warmup
from robustft.train.validate import image_features, top1

if TYPE_CHECKING:  # methods are passed in; this room does not depend on theirs
    from robustft.methods.base import Method

_log = logging.getLogger(__name__)
RESULT = "model.safetensors"
BEST = "best.safetensors"


def fit(
    method: Method,
    clip: Clip,
    train: Any,
    val: Any | None,
    config: TrainConfig,
    run_dir: str | Path | None = None,
    *,
    templates: Sequence[Any],
    reference: Any | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Classifier:
    """Fine-tune `clip` with `method` and return the classifier it makes.

    train, val   ImageDatasets with the same classes; val (or None) is used to log accuracy and,
                 with select="best", to choose; never a test split
    run_dir      where the log, the checkpoints and model.safetensors go; None keeps all in memory
    templates    caption and prompt templates
    reference    PairDataset, for methods that need one
    resume       None, "latest" or a checkpoint folder
    on_step      called with the number of steps done after each

    `clip` is moved to the training device and otherwise left as it is. Datasets without a transform
    get the model's own. Errors: InputError for input that does not fit together; OSError when
    something cannot be written.
    """
    trainer = Trainer(
        method,
        clip,
        train,
        val,
        config,
        run_dir,
        templates=templates,
        reference=reference,
        resume=resume,
        progress=progress,
        on_step=on_step,
    )
    return trainer.run()


class Trainer:
    """One run; arguments as for `fit`. After `run`: `val_top1` (or None) and `log.records`."""

    def __init__(
        self,
        method: Method,
        clip: Clip,
        train: Any,
        val: Any | None,
        config: TrainConfig,
        run_dir: str | Path | None = None,
        *,
        templates: Sequence[Any],
        reference: Any | None = None,
        resume: str | Path | None = None,
        progress: bool = True,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.method, self.clip, self.config = method, clip, config
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.templates, self.progress, self.on_step = templates, progress, on_step
        self.stages = method.stages(config)
        self.val_top1: float | None = None
        self._best: tuple[float, dict[str, Tensor]] | None = None
        self._check(train, val, reference, resume)
        self.train = _with_transform(train, clip.preprocess_train)
        self.val = None if val is None else _with_transform(val, clip.preprocess_val)
        self.reference = (
            _with_transform(reference, clip.preprocess_val) if method.needs_reference else None
        )
        self.resume = checkpoint.find(self.run_dir, resume)

    def run(self) -> Classifier:
        """Train all stages and return the result."""
        state = torch.get_rng_state()
        self.accelerator = _accelerator(self.config)
        try:
            return self._run()
        finally:
            torch.set_rng_state(state)
            _forget_accelerator(self.accelerator)

    def _run(self) -> Classifier:
        config, device = self.config, self.accelerator.device
        self.clip.model.to(device)
        fingerprint = self._fingerprint()
        meta = None if self.resume is None else checkpoint.read(self.resume, fingerprint)
        torch.manual_seed(mix(config.seed, "setup"))
        self.module = self.method.setup(self.clip, self.train.classnames, self.templates).to(device)
        done = 0 if meta is None else int(meta["step"])
        self.log = Log(
            self.run_dir if self._main else None,
            resumed_at=done,
            tensorboard=config.tensorboard,
        )
        if self.run_dir is not None and self._main:
            write_json(self.run_dir / "train.json", fingerprint)
        self._recall_best(done)
        self._references = self._reference_source()
        passed, epochs = 0, 0
        with Interrupts(self.run_dir is not None) as self._interrupts:
            for number, stage in enumerate(self.stages):
                order = self._order(stage, epochs)
                epochs += stage.epochs
                steps = order.steps_per_epoch * stage.epochs
                start = done - passed if meta is not None else 0
                # The end of a stage is left to the stage that resumes there.
                if meta is None or number >= int(meta["stage"]):
                    here = meta is not None and number == int(meta["stage"])
                    self._stage(
                        number,
                        stage,
                        order,
                        steps,
                        first=passed,
                        start=start if here else 0,
                        load=self.resume if here else None,
                        fingerprint=fingerprint,
                    )
                passed += steps
        classifier = self._result()
        self.log.close()
        return classifier

    def _stage(
        self,
        number: int,
        stage: Stage,
        order: Order,
        steps: int,
        *,
        first: int,
        start: int,
        load: Path | None,
        fingerprint: dict[str, Any],
    ) -> None:
        """Steps `start` ... `steps` - 1 of a stage; `first` steps of the run came before it."""
        config, accelerator, method = self.config, self.accelerator, self.method
        method.begin_stage(self.module, number)
        optimizer = self._optimizer(stage)
        warmup = fit_warmup(stage.warmup, steps)
        schedule = cosine_schedule(
            optimizer, lr=stage.lr, warmup=warmup, steps=steps, min_lr=stage.min_lr
        )
        module, optimizer = accelerator.prepare(self.module, optimizer)
        accelerator.register_for_checkpointing(schedule)
        if load is not None:
            checkpoint.load(accelerator, load)
        # After loading: the frozen features of a resumed stage are those of its own weights.
        source = self._source(stage)
        method.train_mode(self.module)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        epoch_end = order.steps_per_epoch
        bar = self._bar(stage, steps, start)
        began, seen = time.perf_counter(), 0
        for step, batches in enumerate(self._steps(source, order, start, steps), start):
            torch.manual_seed(mix(config.seed, "step", first + step, accelerator.process_index))
            rate = schedule.get_last_lr()[0]
            loss, values = self._forward_backward(module, batches)
            if config.grad_clip_norm is not None:
                values["grad_norm"] = accelerator.clip_grad_norm_(parameters, config.grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            if not accelerator.optimizer_step_was_skipped:
                method.after_step(self.module)
            seen += sum(len(batch["label"]) for batch in batches)
            done = first + step + 1
            if (step + 1) % config.log_frequency == 0 or step + 1 == steps:
                spent = time.perf_counter() - began
                record = {name: float(value) for name, value in values.items()}
                record |= {"loss": float(loss), "lr": rate, "images_per_s": seen / spent}
                self.log.write(done, {"stage": stage.name, **record})
                bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
                began, seen = time.perf_counter(), 0
            bar.update()
            epoch, within = divmod(step + 1, epoch_end)
            if within == 0:
                self._validate(done, stage, epoch)
                method.train_mode(self.module)
            stopping = self._interrupts.received is not None
            if stopping or self._is_due(step + 1, epoch if within == 0 else None):
                self._save(done, number, fingerprint)
            if stopping:
                bar.close()
                self._interrupts.leave()
            if self.on_step is not None:
                self.on_step(done)
        bar.close()
        _release(accelerator, self.module)

    def _forward_backward(
        self, module: nn.Module, batches: list[Batch]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Gradients of the step's mean loss; that mean, and the last pass's other values."""
        accelerator = self.accelerator
        total = sum(len(batch["label"]) for batch in batches)
        mean = torch.zeros((), device=accelerator.device)
        values: dict[str, Any] = {}
        for number, batch in enumerate(batches, 1):
            batch = {name: t.to(accelerator.device, non_blocking=True) for name, t in batch.items()}
            waiting = number < len(batches)
            with accelerator.no_sync(module) if waiting else contextlib.nullcontext():
                loss, values = self.method.loss(module, batch)
                share = len(batch["label"]) / total
                accelerator.backward(loss * share if share < 1 else loss)
            mean += loss.detach().float() * share
        return mean, dict(values)

    def _steps(self, source: Any, order: Order, start: int, stop: int) -> Iterator[list[Batch]]:
        """The batches of each step, with their reference pairs."""
        config = self.config
        plan = [len(batches) for _, batches in _sizes(order, start, stop)]
        flat = ((epoch, b) for epoch, batches in order.steps(start, stop) for b in batches)
        batches = stream(source, flat, config.workers)
        pairs: Iterator[Batch] | None = None
        if self._references is not None:
            deal = self._reference_order()
            # One reference batch for every forward pass since the stage's first step.
            passes = order.batches_per_epoch
            epochs, within = divmod(start, order.steps_per_epoch)
            begun = epochs * passes + min(within * order.accum, passes)
            numbers = reference_batches(deal, begun, begun + sum(plan))
            pairs = stream(self._references, numbers, config.workers)
        for count in plan:
            step = []
            for _ in range(count):
                batch = next(batches)
                step.append(batch if pairs is None else batch | next(pairs))
            yield step

    def _source(self, stage: Stage) -> Any:
        """What a stage trains on: images, images with captions, or frozen features."""
        config = self.config
        if stage.frozen_features:
            data = _deterministic(self.train, self.clip.preprocess_val)
            classifier = self.method.classifier(self.module)
            with evaluating(classifier):
                features = image_features(
                    classifier.features,
                    data,
                    batch_size=config.batch_size,
                    device=self.accelerator.device,
                )
            return Features(features.cpu(), data.labels)
        captions = None
        if self.method.needs_captions:
            captions = Captions(self.train, self.templates, self.clip.tokenizer, config.seed)
        return Samples(self.train, config.seed, captions)

    def _reference_source(self) -> References | None:
        """The reference pairs with the frozen model's features of them."""
        data = self.reference
        if data is None:
            return None
        tokens = tokenize(self.clip.tokenizer, data.captions)
        model, device = self.clip.model, self.accelerator.device
        size = self.config.batch_size
        features: dict[str, Tensor] = {}
        # In the precision of training, so that difference vectors are zero before the first step.
        with torch.no_grad(), evaluating(model), self.accelerator.autocast():
            encode: Any = model.encode_text
            parts = [encode(part.long().to(device)).float().cpu() for part in tokens.split(size)]
            features["ref_text_pretrained"] = torch.cat(parts)
            if _is_deterministic(data):
                features["ref_image_pretrained"] = image_features(
                    model.encode_image, data, batch_size=size, device=device
                ).cpu()
        return References(data, tokens, features, self.config.seed)

    def _order(self, stage: Stage, first_epoch: int) -> Order:
        config, accelerator = self.config, self.accelerator
        return Order(
            n=len(self.train),
            batch_size=config.batch_size,
            accum=config.accum_freq,
            seed=config.seed,
            drop_last=self.method.contrastive,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            first_epoch=first_epoch,
        )

    def _reference_order(self) -> Order:
        assert self._references is not None
        wanted = getattr(self.method.config, "reference_batch_size", None)
        return Order(
            n=len(self._references),
            batch_size=wanted or self.config.batch_size,
            seed=mix(self.config.seed, "reference"),
            drop_last=True,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.AdamW(
            self.method.param_groups(self.module, stage.wd),
            lr=stage.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            # One call for all parameters: on small models the loop over them costs more.
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )

    def _validate(self, done: int, stage: Stage, epoch: int) -> None:
        """Validate where the configuration asks for it, and keep the best weights."""
        config = self.config
        last = epoch == stage.epochs
        if self.val is None or not (last or _divides(config.val_frequency, epoch)):
            return
        classifier = self.method.classifier(self.module)
        accuracy = top1(
            classifier,
            self.val,
            batch_size=max(config.batch_size, 256),
            device=self.accelerator.device,
        )
        self.val_top1 = accuracy
        self.log.write(done, {"stage": stage.name, "epoch": epoch, "val:top1": accuracy})
        if config.select == "best" and (self._best is None or accuracy > self._best[0]):
            weights = {k: v.detach().cpu().clone() for k, v in classifier.state_dict().items()}
            self._best = (accuracy, weights)
            if self.run_dir is not None and self._main:
                _save_classifier(
                    self.run_dir / BEST, classifier, {"step": done, "val:top1": accuracy}
                )

    def _recall_best(self, done: int) -> None:
        """Take over the best weights that a run resumed at step `done` had found by then."""
        path = None if self.run_dir is None else self.run_dir / BEST
        if self.config.select != "best" or done == 0 or path is None or not path.is_file():
            return
        from robustft.models import load_classifier

        kept = load_classifier(path, self.clip)
        # Weights of a later step will be found again.
        if kept.metadata["step"] <= done:
            self._best = (kept.metadata["val:top1"], dict(kept.state_dict()))

    def _result(self) -> Classifier:
        classifier = self.method.classifier(self.module)
        if self.config.select == "best" and self._best is not None:
            self.val_top1 = self._best[0]
            classifier.load_state_dict(self._best[1])
        elif self.val is not None and self.val_top1 is None:
            device = self.accelerator.device
            self.val_top1 = top1(classifier, self.val, batch_size=256, device=device)
        for parameter in classifier.parameters():
            parameter.requires_grad_(False)
        classifier.eval()
        if self.run_dir is not None and self._main:
            metadata = {
                "method": self.method.identity(),
                "model": self.clip.name,
                "val:top1": self.val_top1,
            }
            _save_classifier(self.run_dir / RESULT, classifier, metadata)
        return classifier

    def _save(self, done: int, stage: int, fingerprint: dict[str, Any]) -> None:
        if self.run_dir is None:
            return
        if self._main:
            meta = {"step": done, "stage": stage, "fingerprint": fingerprint}
            checkpoint.save(self.accelerator, self.run_dir, done, meta, keep=self.config.keep)
        self.accelerator.wait_for_everyone()

    def _is_due(self, step: int, epoch: int | None) -> bool:
        config = self.config
        return _divides(config.save_steps, step) or (
            epoch is not None and _divides(config.save_frequency, epoch)
        )

    def _bar(self, stage: Stage, steps: int, start: int) -> Any:
        return require("tqdm", extra="train").tqdm(
            total=steps,
            initial=start,
            desc=stage.name,
            unit="step",
            disable=not (self.progress and self._main),
            leave=False,
            mininterval=0.5,
        )

    @property
    def _main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _fingerprint(self) -> dict[str, Any]:
        """What a checkpoint and the run resuming it must have in common."""
        train, reference = self.train, self.reference
        clip = {"name": self.clip.name, "pretrained": self.clip.pretrained}
        if self.run_dir is not None:
            clip["weights"] = checkpoint.digest(self.clip.model)
        return {
            "method": self.method.identity(),
            "model": clip,
            "train": {
                "name": train.name,
                "split": train.split,
                "n": len(train),
                "classes": checkpoint.digest_texts(train.classnames),
                "labels": checkpoint.digest_texts(train.labels.tolist()),
            },
            "templates": checkpoint.digest_texts(self.templates),
            "reference": reference
            and {
                "name": reference.name,
                "n": len(reference),
                "captions": checkpoint.digest_texts(reference.captions),
            },
            "config": self.config.identity(),
            "processes": self.accelerator.num_processes,
        }

    def _check(self, train: Any, val: Any, reference: Any, resume: Any) -> None:
        method, config = self.method, self.config
        if len(train) == 0:
            raise InputError(f"train: {train.name!r} is empty, at least one image is needed")
        for name, data in (("train", train), ("val", val)):
            if data is not None and data.split == "test":
                raise InputError(f"{name}: got the test split of {data.name!r}; it is for the end")
        if val is not None and list(val.classnames) != list(train.classnames):
            raise InputError(
                f"val: its {len(val.classnames)} class names must be those of train "
                f"({len(train.classnames)}), in the same order"
            )
        if len(self.templates) == 0:
            raise InputError("templates: got none, expected at least one")
        if method.needs_reference and (reference is None or len(reference) == 0):
            raise InputError(f"reference: method {method.name} needs reference pairs, got none")
        if config.select == "best" and val is None:
            raise InputError('select="best" needs a validation set, got none')
        if resume is None and self.run_dir is not None:
            taken = (self.run_dir / RESULT).exists() or checkpoint.complete(self.run_dir)
            if taken:
                raise InputError(
                    f'run_dir: {self.run_dir} holds a run already; use another, or resume="latest"'
                )


def _accelerator(config: TrainConfig) -> Any:
    accelerate = require("accelerate", extra="train")
    kind = PRECISIONS[config.precision]
    try:
        return accelerate.Accelerator(cpu=config.device == "cpu", mixed_precision=kind)
    except ValueError as error:
        raise InputError(f"precision {config.precision} is not possible here: {error}") from error


def _forget_accelerator(accelerator: Any) -> None:
    """Let the next run choose its own device and precision, which accelerate keeps globally."""
    state = require("accelerate.state", extra="train")
    alone = accelerator.num_processes == 1
    accelerator.free_memory()
    state.AcceleratorState._reset_state(reset_partial_state=alone)


def _release(accelerator: Any, module: nn.Module) -> None:
    """Undo `prepare`: the next stage prepares the module anew, or it is the result."""
    accelerator.free_memory()
    accelerator._custom_objects.clear()
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        module.__dict__.pop(name, None)


def _save_classifier(path: Path, classifier: Classifier, metadata: dict[str, Any]) -> None:
    try:
        save_classifier(path, classifier, metadata=metadata)
    except (OSError, InputError):
        raise
    except Exception as error:
        # safetensors reports a failed write as an error of its own.
        raise OSError(f"cannot write {path}: {error}") from error


def _with_transform(dataset: Any, transform: Any) -> Any:
    if in_memory(dataset) is not None or dataset.transform is not None:
        return dataset
    return dataset.with_transform(transform)


def _is_deterministic(dataset: Any) -> bool:
    from robustft.data.base import is_deterministic

    return is_deterministic(dataset.transform)


def _deterministic(dataset: Any, transform: Any) -> Any:
    return dataset if _is_deterministic(dataset) else dataset.with_transform(transform)


def _divides(every: int, count: int) -> bool:
    return every > 0 and count % every == 0


def _sizes(order: Order, start: int, stop: int) -> Iterator[tuple[int, range]]:
    """As `order.steps`, with the number of batches alone."""
    for step in range(start, stop):
        place = (step % order.steps_per_epoch) * order.accum
        yield step, range(min(order.accum, order.batches_per_epoch - place))
