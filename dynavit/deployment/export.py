"""Exporting a run, checked on its own data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynavit.data.transforms import image_size_of
from dynavit.deployment.checked import write_checked
from dynavit.deployment.deployed import Deployed, Truncated
from dynavit.deployment.formats import FORMATS
from dynavit.deployment.inputs import repeated
from dynavit.deployment.judging import Judge, create_judge
from dynavit.deployment.speeds import time_exported
from dynavit.deployment.target import Target
from dynavit.deployment.verify import Verification, clear_choices
from dynavit.errors import InputError
from dynavit.models.guides import check_unguided
from dynavit.runs.images import list_images, read_images
from dynavit.runs.loading import first_images, random_samples
from dynavit.runs.open import Run
from dynavit.tables import Row
from dynavit.tasks import create_task
from dynavit.tasks.reid import check_spectra

_IMAGES = 32
_CALIBRATION, _FITTED_AT_ONCE = 128, 8


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
    """

    path: Path
    target: Target
    runtime: str
    megabytes: float
    keep_ratios: tuple[float, ...]
    without_thresholds: bool
    classifies: bool
    verification: Verification


class Exporter:
    """Writes a run's model, at its present keep ratio, as files; thresholds are left out.

    Args:
        run: opened on the CPU.
        images: folder of images to check with; the run's validation data if None.
        bounded: speed is also compared with the oracle in the same runtime.

    Raises:
        InputError: nothing to check with.
    """

    def __init__(self, run: Run, images: str | None = None, *, bounded: bool = False) -> None:
        run.require_classifier()
        self.without_thresholds = run.model.thresholds is not None
        if self.without_thresholds:  # one graph has one number of tokens
            static = copy(run.model)
            static.set_thresholds(None)
            run = replace(run, model=static)
        check_unguided(run.model, run.model.num_spectra)
        self.run, self._folder = run, images
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
            target: what it has to be.
            rounds: how often it is timed beside the dense model, exported likewise; 0 measures no speed.

        Raises:
            InputError: a missing package, a precision that the format does not have, or an exported model that
                differs.
        """
        if target.with_tokens and not self.run.model.stages:
            raise InputError(f"--with-tokens: {self.run.path} holds a dense model, which chooses none; leave it out.")
        low = target.precision != "fp32"
        timed = rounds > 0 and any(ratio < 1 for ratio in self.run.model.keep_ratios)
        calibration = self.calibration(target.batch) if target.precision == "int8" else []
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
            clock=partial(self._time, target=target, calibration=calibration, rounds=rounds) if timed else None,
        )
        chosen = FORMATS[target.format]
        files = [path, *(path.with_suffix(suffix) for suffix in chosen.beside)]
        return Exported(
            path,
            target,
            chosen.runtime,
            sum(file.stat().st_size for file in files) / 1e6,
            self.run.model.keep_ratios,
            self.without_thresholds,
            not self.run.is_reid,
            verification,
        )

    def calibration(self, batch: int | None = None) -> list[Tensor]:
        """Return batches of images that int8 is fitted to: of the training split, or of the folder.

        Args:
            batch: size of every one, the last filled by its first images; None: of any.
        """
        batches = self._fitting.split(batch or _FITTED_AT_ONCE)
        return list(batches) if batch is None else [repeated(some, batch) for some in batches]

    @cached_property
    def _fitting(self) -> Tensor:
        if self._others is not None:
            return self._others
        assert self.run.config is not None  # _read_data asked for it
        try:
            data = create_task(self.run.config).open_data(self.run.preprocessing, train=True, augment=False)
        except InputError as error:
            raise InputError(f"{error} int8 is fitted to training images: pass --images DIR for others.") from None
        batches = random_samples(data.train, _CALIBRATION, _FITTED_AT_ONCE)
        if not batches:
            raise InputError(
                "not one training image can be read, to which int8 is fitted: pass --images DIR for others."
            )
        return torch.cat([images for images, _ in batches])

    @cached_property
    def _judge(self) -> Judge:
        return create_judge(self.run, self._data)

    def _time(
        self, exported: Callable[[Tensor], object], target: Target, calibration: list[Tensor], rounds: int
    ) -> list[Row]:
        return time_exported(self._dense, exported, self.sample, target, calibration, rounds, self._truncated)

    def _metadata(self, target: Target) -> dict[str, Any]:
        metadata = {
            "preprocessing": {**self.run.preprocessing, "image_size": list(image_size_of(self.run.preprocessing))},
            "class_names": list(self.run.class_names),
            "keep_ratios": list(self.run.model.keep_ratios),
            "architecture": self.run.model.architecture,
            "precision": target.precision,
        }
        if spectra := self.run.model.metadata.get("spectra"):
            metadata["spectra"] = spectra
        if self.run.is_reid:
            del metadata["class_names"]  # of the training identities, which the embedding does not tell
        return metadata

    def _read_folder(self, images: str) -> Tensor:
        """Return images to check with, and keep others; all of them where there are not as many others."""
        batches = list(read_images(self.run, list_images(images)[: _IMAGES + _CALIBRATION], _IMAGES))
        for problem in (problem for _, _, problems in batches for problem in problems):
            warnings.warn(problem, stacklevel=2)
        found = torch.cat([batch for good, batch, _ in batches if good])
        self._others = found[_IMAGES:] if len(found) >= 2 * _IMAGES else found
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
        if self.run.is_reid:
            check_spectra(self.run.model, self._data)
        found = first_images(self._data.validation, _IMAGES)
        if not found:
            raise InputError(f"{self.run.path}: not one validation image can be read: pass --images DIR.")
        return torch.stack(found)
