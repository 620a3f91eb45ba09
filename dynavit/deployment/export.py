"""Exporting a run, checked on its own data."""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynavit.deployment.checked import write_checked
from dynavit.deployment.deployed import Deployed, Truncated
from dynavit.deployment.formats import FORMATS
from dynavit.deployment.judging import Judge, create_judge
from dynavit.deployment.speeds import time_exported
from dynavit.deployment.target import Target
from dynavit.deployment.verify import Verification, clear_choices
from dynavit.errors import InputError
from dynavit.runs.loading import first_images, random_samples
from dynavit.runs.open import Run, list_images, read_images
from dynavit.tables import Row
from dynavit.tasks import create_task

_IMAGES = 32
_CALIBRATION = 128


@dataclass(frozen=True)
class Exported:
    """A model written as a file.

    Attributes:
        path: the file.
        target: what it is.
        runtime: what ran it, to check it.
        megabytes: of the file and those that go with it.
        keep_ratios: of its stages; none if it is dense.
        without_thresholds: the model's were left out, because one graph has one number of tokens.
        classifies: it gives logits, and not an embedding.
        verification: what was compared with the original.
        speeds: rows of :func:`~dynavit.deployment.speeds.time_exported`; empty where no speed was measured.
    """

    path: Path
    target: Target
    runtime: str
    megabytes: float
    keep_ratios: tuple[float, ...]
    without_thresholds: bool
    classifies: bool
    verification: Verification
    speeds: list[Row]


class Exporter:
    """Writes a run's model, at its present keep ratio, as files; thresholds are left out.

    Args:
        run: opened on the CPU.
        images: folder of images to check with; the run's validation data if None.
        batch: files take batches of this size alone; of any size if None.
        bounded: speed is also compared with the oracle in the same runtime.

    Raises:
        InputError: nothing to check with.
    """

    def __init__(self, run: Run, images: str | None = None, batch: int | None = None, *, bounded: bool = False) -> None:
        self.without_thresholds = run.model.thresholds is not None
        if self.without_thresholds:  # one graph has one number of tokens
            static = copy(run.model)
            static.set_thresholds(None)
            run = replace(run, model=static)
        self.run, self.batch, self._folder = run, batch, images
        self._others: Tensor | None = None
        self.sample = self._read_data() if images is None else self._read_folder(images)
        self._plain, self._telling = (Deployed(run.model, with_tokens) for with_tokens in (False, True))
        self._dense = Deployed(run.model.at_ratio(1.0))
        self._truncated = Truncated(run.model) if bounded else None
        self._clear = clear_choices(run.model, self.sample)

    def export(self, path: Path, target: Target, rounds: int = 15) -> Exported:
        """Write a file.

        Args:
            path: its name; the folder is made if missing.
            target: what it has to be, of this exporter's batch size.
            rounds: how often it is timed beside the dense model, exported likewise; 0 measures no speed.

        Raises:
            InputError: a missing package, a precision that the format does not have, or an exported model that
                differs.
        """
        ratios, low = self.run.model.keep_ratios, target.precision != "fp32"
        calibration = self.calibration if target.precision == "int8" else []
        labelled = self._folder is None and (low or self.run.is_reid)
        verification = write_checked(
            self._plain,
            path,
            self.sample,
            self._metadata(target),
            target,
            answer="embedding" if self.run.is_reid else "logits",
            classifies=not self.run.is_reid,
            clear=self._clear,
            calibration=calibration,
            telling=self._telling,
            judge=self._judge if labelled else None,
        )
        chosen = FORMATS[target.format]
        exported = chosen.open(path)
        timed = rounds > 0 and any(ratio < 1 for ratio in ratios)
        files = [path, *(path.with_suffix(suffix) for suffix in chosen.beside)]
        return Exported(
            path,
            target,
            chosen.runtime,
            sum(file.stat().st_size for file in files) / 1e6,
            ratios,
            self.without_thresholds,
            not self.run.is_reid,
            verification,
            time_exported(self._dense, exported, self.sample, target, calibration, rounds, self._truncated)
            if timed
            else [],
        )

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Batches of images that int8 is fitted to: of the training split, or of the folder."""
        size = self.batch or 8
        if self._others is None:
            assert self.run.config is not None  # _read_data asked for it
            data = create_task(self.run.config).open_data(self.run.preprocessing, train=True, augment=False)
            batches = [images for images, _ in random_samples(data.train, _CALIBRATION, size)]
        else:
            batches = list(self._others.split(size))
        if self.batch is not None:  # the last one again from its beginning
            batches = [batch[torch.arange(size) % len(batch)] for batch in batches]
        return batches

    @cached_property
    def _judge(self) -> Judge:
        return create_judge(self.run, self._data, self.batch)

    def _metadata(self, target: Target) -> dict[str, Any]:
        metadata = {
            "preprocessing": self.run.preprocessing,
            "class_names": list(self.run.class_names),
            "keep_ratios": list(self.run.model.keep_ratios),
            "architecture": self.run.model.architecture,
            "precision": target.precision,
        }
        if self.run.is_reid:
            del metadata["class_names"]  # of the training identities, which the embedding does not tell
        return metadata

    def _read_folder(self, images: str) -> Tensor:
        """Return images to check with, and keep others; the same ones where there are no more."""
        batches = list(read_images(self.run, list_images(images)[: 2 * _IMAGES], _IMAGES))
        for problem in (problem for _, _, problems in batches for problem in problems):
            warnings.warn(problem, stacklevel=2)
        found = torch.cat([batch for _, batch, _ in batches])
        self._others = found[_IMAGES:] if len(found) > _IMAGES else found
        return found[:_IMAGES]

    def _read_data(self) -> Tensor:
        if self.run.config is None:
            raise InputError(
                f"{self.run.path} has no config.yaml that names data to check with: pass --images DIR, or "
                f"data.root=IMAGES."
            )
        self._data = create_task(self.run.config).open_data(
            self.run.preprocessing, train=False, class_names=self.run.class_names
        )
        return torch.stack(first_images(self._data.validation, _IMAGES))
