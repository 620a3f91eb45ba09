"""The images: a folder of photographs, split into those to learn from, to choose by and to report on, made once.

What is chosen is chosen on images held out from the training split; the validation split is for final numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from dynavit.errors import InputError

HELD_OUT = 1500


@dataclass(frozen=True)
class Photographs:
    """Files of a folder with ``train/CLASS/*`` and ``val/CLASS/*``, in a fixed order."""

    root: Path
    classes: list[str]
    files: dict[str, list[Path]]

    @classmethod
    def of(cls, root: Path) -> Photographs:
        """Read the folder, and hold out images of its training split, the same ones each time.

        Raises:
            InputError: no such folder, or too few images.
        """
        found = {split: sorted((root / split).glob("*/*.*")) for split in ("train", "val")}
        if len(found["train"]) <= 2 * HELD_OUT or not found["val"]:
            raise InputError(
                f"{root}: needs train/CLASS and val/CLASS, and more than {2 * HELD_OUT} images to learn from."
            )
        shuffled = list(found["train"])
        random.Random(0).shuffle(shuffled)
        held_out, rest = sorted(shuffled[:HELD_OUT]), sorted(shuffled[HELD_OUT:])
        classes = sorted({path.parent.name for path in found["train"]})
        return cls(root, classes, {"train": rest, "choose": held_out, "val": found["val"]})

    def labels(self, split: str) -> list[int]:
        """Return the class of each image."""
        number = {name: index for index, name in enumerate(self.classes)}
        return [number[path.parent.name] for path in self.files[split]]

    def linked(self, folder: Path, split: str) -> Path:
        """Make ``folder/train`` and ``folder/val`` of links to the images to learn from and those of ``split``."""
        for name, source in (("train", "train"), ("val", split)):
            for path in self.files[source]:
                link = folder / name / path.parent.name / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(path.resolve())
        return folder
