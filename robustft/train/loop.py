"""The training loop: stages of steps on Accelerate, resumable at any step.

Step k of a run is a function of the configuration and of the state after step k - 1, of nothing
else: order, captions, augmentation and random masks are all derived from (seed, epoch, index) or
(seed, step). A run that was stopped and resumed therefore ends, on a CPU, with the same bits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustft import atomic, progress
from robustft.data.datasets import ImageDataset, PairDataset
from robustft.errors import DivergedError, warn
from robustft.features import FeatureStore
from robustft.models import Classifier, Clip, resolve_templates, save_classifier
from robustft.train import (
    best,
    checkpoint,
    feed,
    folder,
    forewarn,
    inputs,
    log,
    recompute,
    sharded,
    trackers,
)
from robustft.train.accelerator import forget, make_accelerator, release
from robustft.train.asked import Asked
from robustft.train.average import Average
from robustft.train.config import Stage, TrainConfig
from robustft.train.fingerprint import fingerprint, flat
from robustft.train.finite import Watch
from robustft.train.interrupt import Interrupts, leave
from robustft.train.method import Method
from robustft.train.order import Order, mix
from robustft.train.processes import world
from robustft.train.schedule import cosine, fit_warmup, set_rate
from robustft.train.step import Stepper
from robustft.train.validate import Validation, measure_of, validation


class Trainer:
    """One run of `method` on `clip`. After `run`: `val_score` (or None), `log.records`, `diverged`.

    train, val   ImageDatasets with the same classes, or the `pairs()` of a CaptionedDataset and
                 such a one, whose mean recall `val_score` is; val (or None) is used to log accuracy
                 and, with select="best", to choose; never a test split
    run_dir      where the log, the checkpoints and model.safetensors go; None keeps all in memory
    templates    caption and prompt templates
    reference    PairDataset, for methods that need one
    resume       None, "latest" or a checkpoint folder
    store        FeatureStore for features of frozen models; None keeps them in memory
    on_step      called with the number of steps done after each
    keep_log     whether the log stays open after `run`, until `close`

    `clip` is moved to the training device and otherwise left as it is. Datasets without a transform
    get the model's own. Errors: InputError for input that does not fit together; OSError when
    something cannot be written; DivergedError when loss or weights leave the finite numbers, unless
    select="best" has weights from before to return (`diverged` then holds the error).
    """

    def __init__(
        self,
        method: Method,
        clip: Clip,
        train: ImageDataset,
        val: ImageDataset | None,
        config: TrainConfig,
        run_dir: str | Path | None = None,
        *,
        templates: Sequence[Any],
        reference: PairDataset | None = None,
        resume: str | Path | None = None,
        store: FeatureStore | None = None,
        progress: bool = True,
        on_step: Callable[[int], None] | None = None,
        keep_log: bool = False,
    ) -> None:
        self.method, self.clip, self.config = method, clip, config
        self.templates = resolve_templates(templates)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.store, self.progress, self.on_step = store, progress, on_step
        self.stages = method.stages(config)
        self.measure = measure_of(val)
        self.val_score: float | None = None
        self.validation: Validation | None = None
        self.diverged: DivergedError | None = None
        self._average: Average | None = None
        self._sharded = config.parallel == "fsdp"
        self._copy: nn.Module | None = None
        inputs.check(method, train, val, reference, config)
        recompute.check(method, clip, config)
        sharded.check(method, config, world())
        trackers.check(config.report_to)
        self.log = log.Log(None, resumed_at=0)
        self.keep_log = keep_log
        self._anew = resume is None
        if self.run_dir is not None and self._anew:
            folder.check_free(self.run_dir)
        self.train = feed.with_transform(train, clip.preprocess_train)
        self.val = None if val is None else feed.with_transform(val, clip.preprocess_val)
        self.reference = None
        if method.needs_reference and reference is not None:
            self.reference = feed.with_transform(reference, clip.preprocess_val)
        self.resume = checkpoint.find(self.run_dir, resume)

    def run(self) -> Classifier:
        """Train all stages and return the result."""
        state = torch.get_rng_state()
        self.accelerator = make_accelerator(self.config)
        try:
            with contextlib.ExitStack() as stack:
                # Nobody writes before all processes have looked at what is there.
                self.accelerator.wait_for_everyone()
                stack.enter_context(progress.showing(self.progress and self._main))
                if self.run_dir is not None and self._main:
                    held = folder.held(self.run_dir, self.method, anew=self._anew)
                    stack.enter_context(held)
                if not self.keep_log:
                    stack.callback(self.close)
                result = self._run()
                self.train.say_damaged()
                return result
        finally:
            torch.set_rng_state(state)
            forget(self.accelerator)

    def close(self) -> None:
        """End the log, which with `keep_log` stays open for results."""
        self.log.close()

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
            val=self.val if self.method.needs_validation else None,
            processes=self.accelerator.num_processes,
            weights=self.run_dir is not None,
        )
        self._meta: dict[str, Any] = {"stage": 0, "step": 0}
        if self.resume is not None:
            self._meta = checkpoint.read(self.resume, self._fingerprint)
            if self._main:
                forewarn.other_processes(self._meta["fingerprint"], self._fingerprint)
        torch.manual_seed(mix(config.seed, "setup"))
        self.module = self.method.setup(self.clip, self.train.classnames, self.templates).to(device)
        recompute.begin(self.module, config)
        where = self.run_dir if self._main else None
        if where is not None:
            atomic.write_json(where / folder.SETTINGS, self._fingerprint)
        self.log = log.Log(
            where,
            resumed_at=self._meta["step"],
            report_to=config.report_to,
            settings=flat(self._fingerprint),
        )
        self._best = best.Best(self.run_dir, main=self._main, measure=self.measure)
        if config.select == "best":
            self._best.recall(self.clip, self._meta["step"])
        self._feed = feed.Feed(
            self.method,
            self.clip,
            self.train,
            self.reference,
            self.templates,
            config,
            self.accelerator,
            self.val,
            self.store,
        )
        if self.val is not None:
            self.validation = validation(
                self.val,
                self.clip.tokenizer,
                batch_size=max(config.batch_size, 256),
                device=device,
                workers=config.workers,
                accelerator=self.accelerator,
            )
        try:
            self._stages()
        except DivergedError as error:
            if self._best.weights is None:
                raise
            self.diverged = error
            warn(f"{error}; the result is the best before that (validation {self._best.accuracy})")
        return self._result()

    def _stages(self) -> None:
        passed, epochs = 0, 0
        saves = self.run_dir is not None
        with Interrupts(saves) as interrupts:
            minutes = self.config.save_minutes if saves else 0
            self._asked = Asked(interrupts, self.accelerator, minutes)
            for number, stage in enumerate(self.stages):
                order = self._feed.order(epochs)
                load = self.resume if number == self._meta["stage"] else None
                # A run stopped at a stage's end resumes there, with no step left to do.
                if number >= self._meta["stage"]:
                    start = self._meta["step"] - passed if load is not None else 0
                    self._stage(number, order, passed, start, load)
                passed += order.steps_per_epoch * stage.epochs
                epochs += stage.epochs

    def _stage(self, number: int, order: Order, passed: int, start: int, load: Path | None) -> None:
        """Stage `number` from its step `start`; `passed` steps of the run came before the stage."""
        stage, config, method = self.stages[number], self.config, self.method
        steps = order.steps_per_epoch * stage.epochs
        warmup = stage.warmup if config.keep_warmup else fit_warmup(stage.warmup, steps)
        method.begin_stage(self.module, number)
        take = Stepper(method, self.module, stage, config, self.accelerator, load)
        self._average = take.average
        if load is not None and self.accelerator.scaler is not None and self._meta.get("scaler"):
            self.accelerator.scaler.load_state_dict(self._meta["scaler"])
        source = self._feed.source(self.module, stage)
        if self.validation is not None:
            frozen = stage.frozen_features
            self.validation.keep_features(method.classifier(self.module) if frozen else None)
        method.train_mode(self.module)
        watch = Watch(self.accelerator)
        if start < steps:
            forewarn.average(method, steps, config.ema)
            forewarn.memory(take.trained, self.accelerator.device)
        bar = progress.bar(stage.name, steps, "step", done=start)
        began, seen = time.perf_counter(), 0
        for step, batches in enumerate(self._feed.steps(source, order, start, steps), start + 1):
            done = passed + step
            rate = cosine(step - 1, lr=stage.lr, warmup=warmup, steps=steps, min_lr=stage.min_lr)
            set_rate(take.optimizer, rate)
            drawer = 0 if method.same_draws else self.accelerator.process_index
            torch.manual_seed(mix(config.seed, "step", done, drawer))
            method.begin_step(self.module, (step - 1) // order.steps_per_epoch, stage.epochs)
            loss, values = take(batches, order.weights(step - 1))
            watch.note(done, loss)
            seen += sum(len(batch["label"]) for batch in batches)
            epoch, within = divmod(step, order.steps_per_epoch)
            logged = step % config.log_frequency == 0 or step == steps
            stop, save = self._asked.now(together=logged)
            save |= within == 0 and _divides(config.save_frequency, epoch)
            save |= _divides(config.save_steps, done)
            if logged:
                values |= {"loss": loss, "lr": rate}
                record = {name: float(value) for name, value in values.items()}
                record["images_per_s"] = round(seen / (time.perf_counter() - began), 1)
                self.log.write(done, {"stage": stage.name, **record})
                bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
                began, seen = time.perf_counter(), 0
            bar.update()
            if save or within == 0:
                watch.check(rate, take.trained, done)
            elif logged or watch.each_step:
                watch.check(rate)
            if within == 0:
                self._validate(done, stage, epoch)
                method.train_mode(self.module)
            if save:
                self._save(done, number, take.optimizer)
            if stop:
                bar.close()
                assert self.run_dir is not None
                leave(stop, done, checkpoint.path_of(self.run_dir, done))
            if self.on_step is not None:
                self.on_step(done)
        bar.close()
        release(self.accelerator, self.module, more=number + 1 < len(self.stages))

    def _validate(self, done: int, stage: Stage, epoch: int) -> None:
        """Validate where the configuration asks for it, and keep the best weights."""
        config = self.config
        last = epoch == stage.epochs
        if self.val is None or not (last or _divides(config.val_frequency, epoch)):
            return
        with contextlib.nullcontext() if self._average is None else self._average.swapped():
            classifier = self.method.classifier(self._whole())
            accuracy = self._score(classifier)
            self.val_score = accuracy
            found = {f"val:{self.measure}": accuracy}
            self.log.write(done, {"stage": stage.name, "epoch": epoch, **found})
            if config.select == "best" and self._best.offer(classifier, accuracy, done):
                self._save_parts()

    @property
    def val_top1(self) -> float | None:
        """`val_score` where validation is by accuracy."""
        return self.val_score if self.measure == "top1" else None

    def _score(self, classifier: Classifier) -> float:
        assert self.validation is not None
        return self.validation.score(classifier)

    def _result(self) -> Classifier:
        recompute.end(self.module, self.config)
        if self._average is not None:
            self._average.swap()
        classifier = self.method.classifier(self._whole())
        if self._best.weights is not None:  # whose parts were saved with it
            self.val_score = self._best.accuracy
            classifier.load_state_dict(self._best.weights)
        else:
            self._save_parts()
            if self.val is not None and self.val_score is None:
                self.val_score = self._score(classifier)
        for parameter in classifier.parameters():
            parameter.requires_grad_(False)
        classifier.eval()
        if self.run_dir is not None and self._main:
            metadata = {
                "method": self.method.identity(),
                "model": self.clip.name,
                f"val:{self.measure}": self.val_score,
            }
            save_classifier(self.run_dir / folder.RESULT, classifier, metadata=metadata)
        self.accelerator.wait_for_everyone()  # who now reads it finds it
        return classifier

    def _whole(self) -> nn.Module:
        """The module, or where it is spread over the processes, which then call together, a whole
        copy of it."""
        if not self._sharded:
            return self.module
        if self._copy is None:
            self._copy = self.method.setup(self.clip, self.train.classnames, self.templates)
            self._copy.to(self.accelerator.device)
        found = {name: sharded.whole_of(t) for name, t in self.module.state_dict().items()}
        self._copy.load_state_dict(found)
        return self._copy

    def _save_parts(self) -> None:
        if self.run_dir is not None and self._main:
            self.method.save_parts(self.module, self.run_dir)

    def _save(self, done: int, stage: int, optimizer: Any) -> None:
        if self.run_dir is None:
            return
        module = self._whole()
        if self._sharded:
            optimizer = sharded.Gathered(optimizer, keep=self._main)
        if self._main:
            scaler = self.accelerator.scaler
            meta = {
                "stage": stage,
                "fingerprint": self._fingerprint,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            checkpoint.save(
                self.run_dir,
                done,
                meta,
                module,
                optimizer,
                self._average,
                keep=self.config.keep,
            )
        self._asked.saved()
        self.accelerator.wait_for_everyone()

    @property
    def _main(self) -> bool:
        return bool(self.accelerator.is_main_process)


def fit(*args: Any, **options: Any) -> Classifier:
    """Fine-tune a model and return the classifier it makes: `Trainer(...).run()`."""
    return Trainer(*args, **options).run()


def _divides(every: int, count: int) -> bool:
    return every > 0 and count % every == 0
