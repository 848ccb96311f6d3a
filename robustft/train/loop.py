"""The training loop: stages of steps on Accelerate, resumable at any step.

Step k of a run is a function of the configuration and of the state after step k - 1, of nothing
else: order, captions, augmentation and random masks are all derived from (seed, epoch, index) or
(seed, step). A run that was stopped and resumed therefore ends, on a CPU, with the same bits.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustft.errors import InputError
from robustft.extras import require
from robustft.files import write_json
from robustft.models import Classifier, Clip, load_classifier, resolve_templates, save_classifier
from robustft.train import checkpoint, feed
from robustft.train.accelerator import forget, make_accelerator, release
from robustft.train.batches import Batch, Captions, Features, References, Samples
from robustft.train.config import Stage, TrainConfig
from robustft.train.fingerprint import fingerprint
from robustft.train.interrupt import Interrupts
from robustft.train.log import Log
from robustft.train.method import Method
from robustft.train.order import Order, mix
from robustft.train.schedule import cosine_schedule, fit_warmup
from robustft.train.validate import top1

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
        self.templates = resolve_templates(templates)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.progress, self.on_step = progress, on_step
        self.stages = method.stages(config)
        self.val_top1: float | None = None
        self._best: tuple[float, dict[str, Tensor]] | None = None
        self._check(train, val, reference, resume)
        self.train = feed.with_transform(train, clip.preprocess_train)
        self.val = None if val is None else feed.with_transform(val, clip.preprocess_val)
        self.reference = (
            feed.with_transform(reference, clip.preprocess_val) if method.needs_reference else None
        )
        self.resume = checkpoint.find(self.run_dir, resume)

    def run(self) -> Classifier:
        """Train all stages and return the result."""
        state = torch.get_rng_state()
        self.accelerator = make_accelerator(self.config)
        try:
            return self._run()
        finally:
            torch.set_rng_state(state)
            forget(self.accelerator)

    def _run(self) -> Classifier:
        config, device = self.config, self.accelerator.device
        self.clip.model.to(device)
        self._fingerprint = fingerprint(
            self.method.identity(),
            self.clip,
            self.train,
            self.reference,
            self.templates,
            config,
            processes=self.accelerator.num_processes,
            weights=self.run_dir is not None,
        )
        stage_now, done = 0, 0
        if self.resume is not None:
            meta = checkpoint.read(self.resume, self._fingerprint)
            stage_now, done = int(meta["stage"]), int(meta["step"])
        torch.manual_seed(mix(config.seed, "setup"))
        self.module = self.method.setup(self.clip, self.train.classnames, self.templates).to(device)
        where = self.run_dir if self._main else None
        if where is not None:
            write_json(where / "train.json", self._fingerprint)
        self.log = Log(where, resumed_at=done, tensorboard=config.tensorboard)
        self._recall_best(done)
        self._references = self._reference_source()
        passed, epochs = 0, 0
        with Interrupts(self.run_dir is not None) as self._interrupts:
            for number, stage in enumerate(self.stages):
                order = self._order(epochs)
                load = self.resume if number == stage_now else None
                # A run stopped at a stage's end resumes there, with no step left to do.
                if number >= stage_now:
                    start = done - passed if load is not None else 0
                    self._stage(number, order, passed, start, load)
                passed += order.steps_per_epoch * stage.epochs
                epochs += stage.epochs
        classifier = self._result()
        self.log.close()
        return classifier

    def _stage(self, number: int, order: Order, passed: int, start: int, load: Path | None) -> None:
        """Stage `number` from its step `start`; `passed` steps of the run came before the stage."""
        stage, config, method = self.stages[number], self.config, self.method
        steps = order.steps_per_epoch * stage.epochs
        method.begin_stage(self.module, number)
        optimizer = self._optimizer(stage)
        schedule = cosine_schedule(
            optimizer,
            lr=stage.lr,
            warmup=fit_warmup(stage.warmup, steps),
            steps=steps,
            min_lr=stage.min_lr,
        )
        module, optimizer = self.accelerator.prepare(self.module, optimizer)
        self.accelerator.register_for_checkpointing(schedule)
        if load is not None:
            checkpoint.load(self.accelerator, load)
        source = self._source(stage)
        method.train_mode(self.module)
        feeding = feed.steps(
            source,
            order,
            start,
            steps,
            workers=config.workers,
            pairs=self._references,
            pairs_order=self._reference_order(),
        )
        bar = self._bar(stage, steps, start)
        began, seen = time.perf_counter(), 0
        for step, batches in enumerate(feeding, start + 1):
            done, rate = passed + step, schedule.get_last_lr()[0]
            torch.manual_seed(mix(config.seed, "step", done, self.accelerator.process_index))
            loss, values = self._step(module, optimizer, batches)
            schedule.step()
            seen += sum(len(batch["label"]) for batch in batches)
            if step % config.log_frequency == 0 or step == steps:
                values |= {"loss": loss, "lr": rate}
                record = {name: float(value) for name, value in values.items()}
                record["images_per_s"] = round(seen / (time.perf_counter() - began), 1)
                self.log.write(done, {"stage": stage.name, **record})
                bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
                began, seen = time.perf_counter(), 0
            bar.update()
            epoch, within = divmod(step, order.steps_per_epoch)
            if within == 0:
                self._validate(done, stage, epoch)
                method.train_mode(self.module)
            interrupted = self._interrupts.received is not None
            due = within == 0 and _divides(config.save_frequency, epoch)
            if interrupted or due or _divides(config.save_steps, done):
                self._save(done, number)
            if interrupted:
                bar.close()
                self._interrupts.leave()
            if self.on_step is not None:
                self.on_step(done)
        bar.close()
        release(self.accelerator, self.module, more=number + 1 < len(self.stages))

    def _step(
        self, module: nn.Module, optimizer: Any, batches: list[Batch]
    ) -> tuple[Tensor, dict[str, Any]]:
        """One optimiser step: its loss, and values for the log."""
        loss, values = self._forward_backward(module, batches)
        largest = self.config.grad_clip_norm
        if largest is not None:
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            values["grad_norm"] = self.accelerator.clip_grad_norm_(trained, largest)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:  # fp16: the scale was too large
            self.method.after_step(self.module)
        return loss, values

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

    def _source(self, stage: Stage) -> Samples | Features:
        """What a stage trains on."""
        if stage.frozen_features:
            return feed.frozen_features(
                self.method.classifier(self.module),
                self.train,
                self.clip.preprocess_val,
                batch_size=self.config.batch_size,
                device=self.accelerator.device,
            )
        seed, captions = self.config.seed, None
        if self.method.needs_captions:
            captions = Captions(self.train, self.templates, self.clip.tokenizer, seed)
        return Samples(self.train, seed, captions)

    def _reference_source(self) -> References | None:
        if self.reference is None:
            return None
        # In the precision of training, so that difference vectors are zero before the first step.
        with self.accelerator.autocast():
            return feed.references(
                self.clip,
                self.reference,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                device=self.accelerator.device,
            )

    def _order(self, first_epoch: int) -> Order:
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

    def _reference_order(self) -> Order | None:
        if self._references is None:
            return None
        return Order(
            n=len(self._references),
            batch_size=self.method.config.reference_batch_size or self.config.batch_size,
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
                found = {"step": done, "val:top1": accuracy}
                save_classifier(self.run_dir / BEST, classifier, metadata=found)

    def _recall_best(self, done: int) -> None:
        """Take over the best weights that a run resumed at step `done` had found by then."""
        path = None if self.run_dir is None else self.run_dir / BEST
        if self.config.select != "best" or done == 0 or path is None or not path.is_file():
            return
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
            save_classifier(self.run_dir / RESULT, classifier, metadata=metadata)
        return classifier

    def _save(self, done: int, stage: int) -> None:
        if self.run_dir is None:
            return
        if self._main:
            meta = {"step": done, "stage": stage, "fingerprint": self._fingerprint}
            checkpoint.save(self.accelerator, self.run_dir, done, meta, keep=self.config.keep)
        self.accelerator.wait_for_everyone()

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
        if method.needs_reference and (reference is None or len(reference) == 0):
            raise InputError(f"reference: method {method.name} needs reference pairs, got none")
        if config.select == "best" and val is None:
            raise InputError('select="best" needs a validation set, got none')
        if config.select == "best" and config.val_frequency == 0:
            raise InputError('select="best" needs val_frequency of at least 1, got 0')
        if resume is None and self.run_dir is not None:
            taken = (self.run_dir / RESULT).exists() or checkpoint.complete(self.run_dir)
            if taken:
                raise InputError(
                    f'run_dir: {self.run_dir} holds a run already; use another, or resume="latest"'
                )


def _divides(every: int, count: int) -> bool:
    return every > 0 and count % every == 0
