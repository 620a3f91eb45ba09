"""The configurations that come with the package."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

from dynavit.errors import InputError, did_you_mean

_PACKAGE = Path(__file__).parents[1]


def recipes() -> dict[str, Path]:
    """Return the shipped configurations by name, such as ``folder/finetune``."""
    # an installed package has them inside, a checkout beside
    folder = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if not name.startswith("accelerate/")}


def find_config(name: str | Path) -> Path:
    """Return the file of a configuration: a path, or the name of a shipped one, such as ``folder/finetune``.

    Raises:
        InputError: there is no such file or name.
    """
    path = Path(name)
    return path if os.path.isfile(path) else find_recipe(name, "no file and no shipped configuration")


def find_recipe(name: str | Path, otherwise: str = "no shipped configuration") -> Path:
    """Return the file of a shipped configuration.

    Args:
        name: such as ``folder/finetune``, or ``configs/folder/finetune.yaml``.
        otherwise: what to call another one.

    Raises:
        InputError: there is no such name.
    """
    known, shipped = Path(name).as_posix().removeprefix("configs/").removesuffix(".yaml"), recipes()
    if known not in shipped:
        raise InputError(f"{name} is {otherwise}.{did_you_mean(known, shipped)} `dynavit configs` lists those.")
    return shipped[known]


def summary(path: Path) -> str:
    """Return the first sentence of a configuration's comment."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        comment.append(line.strip("# "))
    # a sentence ends before a capital: "et al. 2023" goes on
    return textwrap.shorten(
        re.split(r"[.:]\s+(?=[A-Z])", " ".join(comment))[0].removesuffix("."), 110, placeholder=" ..."
    )
