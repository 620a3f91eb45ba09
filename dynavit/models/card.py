"""The card of a saved model: what it is, what it was trained on, and how good it was there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynavit.files import write_text
from dynavit.text import listed, printable

_MARK = "<!-- Written by dynavit at every save. Take this line out, and your own text stays. -->"


def write_card(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``README.md``, unless somebody else has written one.

    Raises:
        InputError: it cannot be written.
    """
    path = folder / "README.md"
    if not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace"):
        write_text(path, model_card(config))


def model_card(config: Mapping[str, Any]) -> str:
    """Return the card of a model in Markdown, with what the Hugging Face Hub reads at its head.

    Args:
        config: of :func:`~dynavit.models.hub.model_config`. Its metadata may hold ``class_names``; ``license``, of the
            weights that it started from; and ``training``, with ``data``, ``images``, ``epochs``, and of the
            validation ``result`` and ``validation_images``.
    """
    reid, metadata = "num_identities" in config, config["metadata"]
    head = ["library_name: dynavit", f"pipeline_tag: image-{'feature-extraction' if reid else 'classification'}"]
    if license := metadata.get("license"):
        head.append(f"license: {license}")
    lines = ["---", *head, "---", "", _MARK, "", f"# {config['architecture']}, token-pruned", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in _facts(config).items())]
    lines += [
        "",
        'Load with `dynavit.load("FOLDER_OR_HUB_NAME")`; any keep ratio: `dynavit.load(..., keep_ratio=0.5)`.',
    ]
    return "\n".join(lines) + "\n"


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    metadata, training = config["metadata"], config["metadata"].get("training", {})
    facts = {}
    if config["stages"]:
        ratios = ", ".join(f"{ratio:.3g}" for ratio in config["keep_ratios"])
        facts["pruned before blocks"] = f"{', '.join(map(str, config['stages']))}, to {ratios} of the patches"
        facts["by"] = ", ".join(f"{part} {config[part]['name']}" for part in ("scorer", "selector", "reducer"))
    else:
        facts["pruned"] = "nowhere: a dense model"
    if size := config["model_kwargs"].get("img_size"):
        facts["images"] = f"{size if isinstance(size, int) else ' x '.join(map(str, size))} px"
    if names := metadata.get("class_names"):
        kind = "identities" if "num_identities" in config else "classes"
        facts[kind] = f"{len(names):,}" if kind == "identities" else f"{len(names):,}: {listed(names, 20)}"
    if training:
        images = "a stream of" if training["images"] is None else f"{training['images']:,}"
        facts["trained on"] = f"{training['data']}, {images} images, {training['epochs']} epochs"
        facts["validation"] = f"{training['result']} ({training['validation_images']:,} images)"
    facts["license"] = metadata.get("license") or "not stated"
    return facts


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
