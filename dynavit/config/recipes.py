"""The configurations that come with the package."""

from __future__ import annotations

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
    path, shipped = Path(name), recipes()
    if path.is_file():
        return path
    known = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if known not in shipped:
        raise InputError(
            f"{name} is no file and no shipped configuration.{did_you_mean(known, shipped)} `dynavit configs` lists "
            f"those."
        )
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
