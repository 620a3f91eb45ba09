"""The training loop, on Accelerate."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from dynavit.config import Config, save_config
from dynavit.errors import InputError
from dynavit.models import PrunedViT, Trace, load
from dynavit.tasks import Evaluation
from dynavit.training.announce import announce, warn_of_normalised_logits
from dynavit.training.checkpoint import BEST, Progress, Stateful, begin_state, load_state, save_state, saving
from dynavit.training.folder import check_folder, describe_changes, is_out_of_patience, refuse_fewer_epochs
from dynavit.training.lock import locked, refuse_if_held
from dynavit.training.logbook import Logbook
from dynavit.training.monitor import DivergenceGuard, MetricsFile
from dynavit.training.optimization import clip_by_part, set_learning_rates
from dynavit.training.seeding import seed_all
from dynavit.training.setup import create_accelerator, create_setup
from dynavit.training.steplines import StepLines

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
        self.config, self.resume = config, resume
        train, run_dir = config.train, config.run_dir
        self.metrics = MetricsFile(run_dir / "metrics.jsonl")
        refuse_if_held(run_dir)
        self.state = check_folder(config, resume)
        self.accelerator = create_accelerator(config)
        seed_all(config.seed)
        self.setup = create_setup(config, self.accelerator)
        self.model, self.optimizer, self.ema = self.setup.model, self.setup.optimizer, self.setup.ema
        self.batches, self.schedules = self.setup.batches, self.setup.schedules
        self.progress = Progress()
        half_precision = train.mixed_precision == "fp16"
        self.guard = DivergenceGuard(self.setup.task.chance_loss(len(self.setup.classes)), half_precision)
        self.parts: dict[str, Stateful] = {"progress": self.progress, "guard": self.guard}
        # what the configuration does not say, but the meaning of a state depends on
        images = None if self.batches.streams else len(self.setup.data.train)
        classes, processes = list(self.setup.classes), self.accelerator.num_processes
        self.about = {"classes": classes, "processes": processes, "images": images}

    def fit(self) -> dict[str, float]:
        """Train to the last epoch and return the last validation metrics.

        Raises:
            InputError: another process trains in the run's folder, or its state cannot be resumed from.
            Diverged: the loss or the gradients are beyond repair.
        """
        with self._alone():
            if self.state is not None:
                self._restore(self.state)
            if self.state is None or not self._is_finished():
                self._train()
            if self.progress.epoch < self.config.train.epochs:
                self._keep_the_best()
        rows = self.metrics.rows()
        return {name: value for name, value in rows[-1].items() if name.startswith("val/")} if rows else {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the run's folder, and look again at what is in it: another process may have trained there."""
        with ExitStack() as stack:
            found: list[Any] = [None, None]
            if self.accelerator.is_main_process:
                try:
                    stack.enter_context(locked(self.config.run_dir))
                    found[0] = check_folder(self.config, self.resume)
                except InputError as error:
                    found[1] = str(error)
            self.state, refused = broadcast_object_list(found)
            if refused is not None:
                raise InputError(refused)
            yield

    def _restore(self, state: Path) -> None:
        config, progress, log = self.config, self.progress, self.accelerator.print
        found = load_state(self.accelerator, state, self.about, self.parts, self.ema)
        self.guard.start = f"the state that it resumed from ({state})"
        refuse_fewer_epochs(config, progress)
        if self._is_finished():
            stopped = progress.epoch < config.train.epochs
            more = "a larger or no train.patience" if stopped else "more epochs with train.epochs=N"
            done = f"it stopped after {progress.epoch}" if stopped else f"its {progress.epoch} epochs are done"
            log(f"{config.run_dir} is finished: {done}. To train longer, give {more} --resume.")
            return
        for line in describe_changes(config, self.schedules, progress.step):
            log(line)
        if found.get("images") != self.about["images"]:
            log(f"The training images are {self.about['images']}; they were {found.get('images')}.")

    def _train(self) -> None:
        config, accelerator, progress = self.config, self.accelerator, self.progress
        if accelerator.is_main_process:
            save_config(config, config.run_dir / "config.yaml")
            self.metrics.cut_back(progress.step)
        self.logbook = Logbook(accelerator, config, progress.step, self.setup.preprocessing)
        # without a terminal there is no progress bar
        self.lines = None if sys.stderr.isatty() else self._step_lines()
        announce(config, self.setup, accelerator, self.state, progress.step)
        try:
            while not self._is_finished():
                self._train_epoch()
                self._finish_epoch(self._validate())
        except BaseException:
            self.logbook.close()
            raise
        accelerator.end_training()

    def _keep_the_best(self) -> None:
        """Let the run's folder hold the best model, as it is what all commands take, where it stopped being better."""
        run_dir, accelerator = self.config.run_dir, self.accelerator
        if accelerator.is_main_process:
            load(run_dir / BEST).save_pretrained(run_dir)
        accelerator.wait_for_everyone()
        accelerator.print(
            f"Stopped: no better {self.setup.task.metric} for train.patience={self.config.train.patience} epochs. "
            f"{run_dir} holds the model of the best one."
        )

    def _is_finished(self) -> bool:
        progress, train = self.progress, self.config.train
        if progress.epoch >= train.epochs or train.patience is None:
            return progress.epoch >= train.epochs
        rows = [row for row in self.metrics.rows() if row["step"] <= progress.step]
        (stopped,) = broadcast_object_list([is_out_of_patience(rows, train.patience, self.setup.task.metric)])
        return bool(stopped)

    def _step_lines(self) -> StepLines:
        train = self.config.train
        images = self.batches.batch_size * train.accumulation_steps * self.accelerator.num_processes
        return StepLines(self.accelerator.print, self.schedules.total_steps, train.log_steps, images)

    def _train_epoch(self) -> None:
        progress, train = self.progress, self.config.train
        epoch = f"{progress.epoch + 1}/{train.epochs}"
        self.model.train()
        if self.lines is not None:
            self.lines.begin(progress.step)
        bar = tqdm(
            total=self.batches.length,
            initial=progress.batch,
            desc=f"epoch {epoch}",
            leave=False,
            disable=None if self.accelerator.is_main_process else True,  # None: only where there is a terminal
        )
        recent: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for images, labels, indices in self.batches.epoch(progress.epoch, progress.batch):
            # by what is being done, not by what was done before: a resumed run draws the same
            seed_all(self.config.seed, progress.epoch, progress.batch, self.accelerator.process_index)
            losses, norms = self._step(images, labels, indices)
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
                loss = self._add_up(recent)
                bar.set_postfix(loss=f"{loss:.3f}")
                recent = []
            if stepped and progress.step % train.log_steps == 0:
                self.logbook.step(progress.step, losses, norms, self.temperature, self._learning_rate(), len(images))
            if stepped and self.lines is not None and self.lines.due(progress.step):
                self.lines.step(progress.step, epoch, float(losses["loss"]), self._learning_rate())
            if due and progress.batch < self.batches.length:
                with saving(self.config.run_dir):
                    self._save_state()
        bar.close()
        if recent:  # a stream that ended early
            self._add_up(recent)
        if progress.count == 0:
            workers = max(self.config.data.workers, 1)
            raise InputError(
                f"data.batch_size={self.batches.batch_size}: the training stream of data.name={self.config.data.name} "
                f"is too short for one batch in any of its data.workers={workers}; lower these, or add images."
            )

    def _step(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        progress, accelerator = self.progress, self.accelerator
        scheduled = self.schedules.at(progress.step, images.device)
        norms: dict[str, Tensor] = {}
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                losses, trace = self.setup.objective(self.model, images, labels, indices, scheduled)
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
        if progress.step == 1 and self.setup.objective.count_loss is not None:
            warn_of_normalised_logits(trace)
        values = {name: loss.detach() for name, loss in losses.items()}
        return values | _kept(trace) | self.setup.objective.statistics(), norms

    def _add_up(self, recent: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> float:
        """Add up losses and let the guard look at every step; returns the mean loss of these."""
        names = [name for name in recent[0][0] if "/" not in name]
        table = torch.stack([torch.stack([values[name].float() for name in names]) for values, _ in recent])
        # the mean over processes: all of them log the same, and stop together
        rows = [dict(zip(names, row, strict=True)) for row in self.accelerator.reduce(table, "mean").tolist()]
        step = self.progress.step - sum(bool(norms) for _, norms in recent)
        for row, (_, norms) in zip(rows, recent, strict=True):
            if norms:
                gradients = {part: float(norm) for part, norm in norms.items()}
                self.guard.check(row["loss"], gradients, self.schedules.lr(step))
                step += 1
            for name, value in row.items():
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
            self.progress.count += 1
        return sum(row["loss"] for row in rows) / len(rows)

    def _validate(self) -> Evaluation:
        setup = self.setup
        self._agree_on_buffers()
        with self._deployed() as model:
            with self.accelerator.autocast():
                (found,) = setup.task.evaluate([model], setup.validation, self.accelerator, setup.data, "validation")
            if self.accelerator.is_main_process and setup.examples and model.stages:
                self.logbook.pictures(self.progress.step, model, setup.examples)
        return found

    def _agree_on_buffers(self) -> None:
        """Give all processes the first one's batch norm statistics, which are what is saved."""
        if self.accelerator.num_processes > 1:
            averaged = [self.ema.module] if self.ema is not None else []
            for model in [self.accelerator.unwrap_model(self.model), *averaged]:
                for buffer in model.buffers():
                    broadcast(buffer)

    def _finish_epoch(self, found: Evaluation) -> None:
        metrics = found.metrics
        progress, accelerator, run_dir = self.progress, self.accelerator, self.config.run_dir
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step}
        row |= {f"train/{name}": total / progress.count for name, total in progress.sums.items()}
        row |= {f"val/{name}": value for name, value in metrics.items()}
        row |= {"lr": self._learning_rate(), "temperature": self.temperature}
        task = self.setup.task
        improved = metrics[task.metric] > progress.best
        progress.best = max(progress.best, metrics[task.metric])
        progress.epoch, progress.batch, progress.sums, progress.count = progress.epoch + 1, 0, {}, 0
        logged = {name.replace("train/", "epoch/"): value for name, value in row.items() if name != "epoch"}
        self.logbook.scalars(progress.step, logged)
        with saving(run_dir):
            if accelerator.is_main_process:
                begin_state(run_dir)  # which tells a run that dies here from one whose state was removed
                self.metrics.append(row)
                with self._deployed() as model:
                    model.metadata["training"] = self._described(model, found)
                    model.save_pretrained(run_dir)
                    if improved:
                        model.save_pretrained(run_dir / BEST)
            self._save_state()
        accelerator.print(f"epoch {row['epoch']:>3}  loss {row['train/loss']:.4f}  {task.describe(metrics)}")

    def _described(self, model: PrunedViT, found: Evaluation) -> dict[str, Any]:
        """Return what the card of the model says of its training."""
        judged, of = len(found.detail.values), "queries" if model.neck is not None else "images"
        return {
            "data": self.config.data.name,
            "images": "a stream of" if self.about["images"] is None else f"{self.about['images']:,}",
            "epochs": self.progress.epoch,
            "result": f"{self.setup.task.describe(found.metrics).replace('  ', ', ')} on {judged:,} {of}",
            "stages": list(model.stages),
            "keep_ratios": list(model.keep_ratios),
        }

    def _save_state(self) -> None:
        save_state(self.accelerator, self.config.run_dir, self.about, self.parts, self.ema)

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
        return self.schedules.temperature(self.progress.step)

    def _learning_rate(self) -> float:
        return self.schedules.lr(self.progress.step)


def _kept(trace: Trace) -> dict[str, Tensor]:
    """Return numbers about the tokens kept in a forward, by name and stage."""
    values: dict[str, Tensor] = {}
    for stage, kept in enumerate(trace.counts, start=1):
        values[f"kept/mean_{stage}"] = kept.float().mean()
        values[f"kept/min_{stage}"] = kept.min().float()
        values[f"kept/empty_{stage}"] = (kept == 0).sum().float()
    for stage, choice in enumerate(trace.choices, start=1):
        values[f"kept/probability_{stage}"] = choice.expected.detach().mean()
    return values
