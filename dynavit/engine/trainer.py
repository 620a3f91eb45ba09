"""The training loop, on Accelerate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor
from tqdm import tqdm

from dynavit.config import Config, save_config
from dynavit.engine.build import build_data, build_start, build_teacher, resolve_preprocessing
from dynavit.engine.checkpoint import (
    Progress,
    find_state,
    load_state,
    refuse_another_configuration,
    refuse_to_overwrite,
    save_state,
    saving,
)
from dynavit.engine.evaluation import evaluate_accuracy
from dynavit.engine.loading import TrainingBatches, first_images, foreground_of, make_loader, prepare_loader
from dynavit.engine.logbook import Logbook
from dynavit.engine.monitor import DivergenceGuard, MetricsFile
from dynavit.engine.objective import ClassificationObjective
from dynavit.engine.optimization import clip_by_part, create_optimizer, set_learning_rates
from dynavit.engine.schedules import KeepCounts, LearningRate, anneal
from dynavit.engine.seeding import seed_all
from dynavit.errors import InputError
from dynavit.models import PrunedViT
from dynavit.models.hub import model_config

_CHECK_STEPS = 10  # losses are read from the device this often, so that it is not made to wait


class Trainer:
    """Trains what a configuration describes; :meth:`fit` runs it from wherever it stands.

    Args:
        config: the run.
        resume: continue from the state in the run's folder, if there is one.

    Raises:
        InputError: something in the configuration does not exist or does not fit, or the folder holds
            a run already and ``resume`` is False.
    """

    def __init__(self, config: Config, resume: bool = False) -> None:
        self.config = config
        train, run_dir = config.train, config.run_dir
        self.metrics = MetricsFile(run_dir / "metrics.jsonl")
        self.state = find_state(run_dir) if resume else None
        if self.state is None:
            refuse_to_overwrite(run_dir, resume, epochs=len(self.metrics.rows()))
        else:
            refuse_another_configuration(run_dir, config)
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=train.mixed_precision,
            gradient_accumulation_steps=train.accumulation_steps,
            log_with="tensorboard",
            project_config=ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir)),
        )
        seed_all(config.seed)
        self._build()

    def _build(self) -> None:
        config, accelerator = self.config, self.accelerator
        train = config.train
        probe = build_start(config, None).model
        self.preprocessing = resolve_preprocessing(config.data, probe.backbone)
        with accelerator.main_process_first():  # which may have to download
            data = build_data(config.data, self.preprocessing, config.seed)
        if data.train is None:
            raise InputError(f"data.name={config.data.name} has no training split {config.data.train_split!r}.")
        self.classes = data.class_names
        if len(self.classes) < 2:
            raise InputError(f"the data have one class only ({self.classes[0]}): there is nothing to tell apart.")
        start = build_start(config, self.classes)
        start.model.metadata = {"preprocessing": self.preprocessing, "class_names": list(self.classes)}
        teacher = build_teacher(config, start)
        optimizer = create_optimizer(config.optimizer, start, train.freeze)
        model = start.model
        model.set_grad_checkpointing(train.grad_checkpointing)
        self.ema = ModelEmaV3(model, decay=train.ema_decay) if train.ema_decay else None
        if train.compile:
            model.compile()

        validation = make_loader(data.validation, config.data.batch_size, config.data.workers)
        self.foreground = foreground_of(data.validation, self.preprocessing, model.adapter.grid_size)
        self.examples = first_images(data.validation, 4)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if self.ema is not None:
            self.ema.to(accelerator.device)
        self.batches = TrainingBatches(accelerator, data.train, config)
        self.validation = prepare_loader(accelerator, validation)
        self.steps_per_epoch = self.batches.length // train.accumulation_steps

        teacher = teacher.to(accelerator.device) if teacher is not None else None
        budget = model.selector.budget == "expected" and model.selector.trains_predictor
        self.objective = ClassificationObjective(config.loss, budget, teacher)
        mixing = config.data.mixup or config.data.cutmix
        self.mixup = (
            Mixup(
                mixup_alpha=config.data.mixup,
                cutmix_alpha=config.data.cutmix,
                label_smoothing=config.loss.label_smoothing,
                num_classes=len(self.classes),
            )
            if mixing
            else None
        )
        self.total_steps = train.epochs * self.steps_per_epoch
        self.lr = LearningRate(
            round(config.optimizer.warmup_epochs * self.steps_per_epoch),
            self.total_steps,
            config.optimizer.final_lr_scale,
        )
        rows, columns = model.adapter.grid_size
        self.keep_counts = KeepCounts(
            rows * columns,
            model.keep_ratios,
            round(config.schedule.keep_ratio_warmup_epochs * self.steps_per_epoch),
        )
        self.progress = Progress()
        self.guard = DivergenceGuard(math.log(len(self.classes)), train.mixed_precision == "fp16")
        accelerator.register_for_checkpointing(self.progress, self.guard)
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)
        # what the configuration does not say, but the meaning of a state depends on
        self.about = {"classes": list(self.classes), "processes": accelerator.num_processes}
        model_config(model)  # refuses now what could not be saved after an epoch

    def fit(self) -> dict[str, float]:
        """Train to the last epoch and return the last validation metrics."""
        config, accelerator, progress = self.config, self.accelerator, self.progress
        run_dir = config.run_dir
        if self.state is not None:
            load_state(accelerator, self.state, self.about)
        if accelerator.is_main_process:
            try:
                run_dir.mkdir(parents=True, exist_ok=True)
                save_config(config, run_dir / "config.yaml")
            except OSError as error:
                raise InputError(
                    f"{run_dir} is not writable ({error.strerror}): choose another place with output_dir=FOLDER."
                ) from None
            self.metrics.cut_back(progress.step)
        self.logbook = Logbook(accelerator, progress.step, self.preprocessing)
        self._announce()
        while progress.epoch < config.train.epochs:
            self._train_epoch()
            metrics = self._validate()
            self._finish_epoch(metrics)
        accelerator.end_training()
        rows = self.metrics.rows()
        return {name: value for name, value in rows[-1].items() if name.startswith("val/")} if rows else {}

    def _train_epoch(self) -> None:
        progress, train = self.progress, self.config.train
        self.model.train()
        bar = tqdm(
            total=self.batches.length,
            initial=progress.batch,
            desc=f"epoch {progress.epoch + 1}/{train.epochs}",
            leave=False,
            disable=None if self.accelerator.is_main_process else True,  # None: only where there is a terminal
        )
        recent: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for images, labels, _ in self.batches.epoch(progress.epoch, progress.batch):
            # by what is being done, not by what was done before: a resumed run draws the same
            seed_all(self.config.seed, progress.epoch, progress.batch, self.accelerator.process_index)
            losses, norms = self._step(images, labels)
            progress.batch += 1
            recent.append((losses, norms))
            stepped = self.accelerator.sync_gradients
            due = (
                stepped
                and not self.batches.streams  # which cannot be entered in the middle
                and train.checkpoint_steps
                and progress.step % train.checkpoint_steps == 0
            )
            if len(recent) >= _CHECK_STEPS or progress.batch == self.batches.length or due:
                bar.update(len(recent))
                loss = self._account(recent)
                bar.set_postfix(loss=f"{loss:.3f}")
                recent = []
            if stepped and progress.step % train.log_steps == 0:
                self.logbook.step(progress.step, losses, norms, self.temperature, self._learning_rate(), len(images))
            if due and progress.batch < self.batches.length:
                with saving(self.config.run_dir):
                    save_state(self.accelerator, self.config.run_dir, self.about)
        bar.close()
        if recent:  # a stream that ended early
            self._account(recent)
        if progress.count == 0:
            raise InputError(f"data.name={self.config.data.name}: the training stream gave no batch.")

    def _step(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        progress, accelerator = self.progress, self.accelerator
        targets: Tensor = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        counts: list[Any] = self.keep_counts(progress.step)
        temperature: float | Tensor = self.temperature
        if self.config.train.compile:  # tensors can move without recompiling
            counts = [torch.tensor(count, device=images.device) for count in counts]
            temperature = torch.tensor(temperature, device=images.device)
        norms: dict[str, Tensor] = {}
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                logits, trace = self.model(images, return_trace=True, temperature=temperature, keep_counts=counts)
                losses = self.objective(images, targets, logits, trace, self.keep_counts.ratios(progress.step))
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                accelerator.unscale_gradients()
                norms = clip_by_part(self.optimizer, self.config.train.clip_grad_norm)
            frozen = progress.epoch < self.config.train.freeze_epochs
            set_learning_rates(self.optimizer, self._learning_rate(), frozen)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            progress.step += 1
            if self.ema is not None:
                self.ema.update(accelerator.unwrap_model(self.model), step=progress.step)
        values = {name: loss.detach() for name, loss in losses.items()}
        for stage, kept in enumerate(trace.counts, start=1):
            values[f"kept/mean_{stage}"] = kept.float().mean()
            values[f"kept/min_{stage}"] = kept.min().float()
            values[f"kept/empty_{stage}"] = (kept == 0).sum().float()
        for stage, expected in enumerate(trace.expected, start=1):
            values[f"kept/probability_{stage}"] = expected.detach().mean()
        return values, norms

    def _account(self, recent: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> float:
        """Add up losses and let the guard look at every step; returns the mean loss of these."""
        names = [name for name in recent[0][0] if "/" not in name]
        table = torch.stack([torch.stack([values[name].float() for name in names]) for values, _ in recent])
        # the mean over processes: all of them log the same, and stop together
        rows = [dict(zip(names, row, strict=True)) for row in self.accelerator.reduce(table, "mean").tolist()]
        for row, (_, norms) in zip(rows, recent, strict=True):
            if norms:
                gradients = {part: float(norm) for part, norm in norms.items()}
                self.guard.check(row["loss"], gradients, self._learning_rate())
            for name, value in row.items():
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
            self.progress.count += 1
        return sum(row["loss"] for row in rows) / len(rows)

    def _validate(self) -> dict[str, float]:
        with self._deployed() as model:
            metrics = evaluate_accuracy(model, self.validation, self.accelerator, self.foreground, "validation")
            if self.accelerator.is_main_process and self.examples and model.stages:
                self.logbook.pictures(self.progress.step, model, self.examples)
        return metrics

    def _finish_epoch(self, metrics: dict[str, float]) -> None:
        progress, accelerator, run_dir = self.progress, self.accelerator, self.config.run_dir
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step}
        row |= {f"train/{name}": total / progress.count for name, total in progress.sums.items()}
        row |= {f"val/{name}": value for name, value in metrics.items()}
        row |= {"lr": self._learning_rate(), "temperature": self.temperature}
        improved = metrics["top1"] > progress.best
        progress.best = max(progress.best, metrics["top1"])
        progress.epoch, progress.batch, progress.sums, progress.count = progress.epoch + 1, 0, {}, 0
        logged = {name.replace("train/", "epoch/"): value for name, value in row.items() if name != "epoch"}
        self.logbook.scalars(progress.step, logged)
        with saving(run_dir):
            if accelerator.is_main_process:
                self.metrics.append(row)
                with self._deployed() as model:
                    model.save_pretrained(run_dir)
                    if improved:
                        model.save_pretrained(run_dir / "best")
            save_state(accelerator, run_dir, self.about)
        accelerator.print(
            f"epoch {row['epoch']:>3}  loss {row['train/loss']:.4f}  top-1 {metrics['top1']:.2f} %"
            + (f"  foreground recall {metrics['foreground_recall']:.3f}" if "foreground_recall" in metrics else "")
        )

    @contextmanager
    def _deployed(self) -> Iterator[PrunedViT]:
        """Give the model as it will be used: the averaged weights if there are any, in eval mode."""
        trained: PrunedViT = self.accelerator.unwrap_model(self.model)
        model: Any = self.ema.module if self.ema is not None else trained
        model.eval()
        execution, model.execution = model.execution, "auto"
        yield model
        model.execution = execution
        trained.train()

    @property
    def temperature(self) -> float:
        """The selector's temperature at this step."""
        settings = self.config.schedule
        fraction = self.progress.step / max(self.total_steps - 1, 1)
        return anneal(settings.temperature_kind, settings.temperature_start, settings.temperature_end, fraction)

    def _learning_rate(self) -> float:
        return self.config.optimizer.lr * self.lr(self.progress.step)

    def _announce(self) -> None:
        say, config = self.accelerator.print, self.config
        model: PrunedViT = self.accelerator.unwrap_model(self.model)
        counts = [str(count) for count in self.keep_counts(self.keep_counts.warmup_steps)]
        say(
            f"{model.architecture}: {self.keep_counts.num_patches} patches"
            + (f", {' -> '.join(counts)} before blocks {list(model.stages)}" if counts else ", no pruning")
            + f"; selector {config.model.selector['name']}; {len(self.classes)} classes"
        )
        say(
            f"{config.train.epochs} epochs of {self.batches.length} batches x {config.data.batch_size} images x "
            f"{self.accelerator.num_processes} process(es) on {self.accelerator.device}; "
            f"writing {config.run_dir}"
        )
        if model.stages and model.selector.budget == "k" and config.loss.keep_ratio:
            say("The selector keeps exactly k tokens: the keep-ratio loss would have nothing to do and is left out.")
        if self.state is not None:
            say(f"Resuming from {self.state} at step {self.progress.step} of {self.total_steps}.")
