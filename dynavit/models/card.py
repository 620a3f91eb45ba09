"""The card of a saved model: what it is, what it was trained on, and how good it was there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynavit.files import write_text
from dynavit.text import listed, printable

_OF_TRAINING = {"data", "images", "epochs", "result", "stages", "keep_ratios"}
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
            weights that it started from; and ``training``: ``data``, ``images``, ``epochs``, the ``result`` of
            validation, and ``stages`` and ``keep_ratios`` at which that was found.
    """
    reid, metadata = "num_identities" in config, config["metadata"]
    head = ["library_name: dynavit", f"pipeline_tag: image-{'feature-extraction' if reid else 'classification'}"]
    if license := metadata.get("license"):
        head.append(f"license: {license}")
    lines = [
        "---",
        *head,
        "---",
        "",
        _MARK,
        "",
        f"# {config['architecture']}{', token-pruned' * bool(config['stages'])}",
        "",
    ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in _facts(config).items())]
    lines += [
        "",
        'Load with `dynavit.load("FOLDER_OR_HUB_NAME")`; any keep ratio: `dynavit.load(..., keep_ratio=0.5)`.',
    ]
    return "\n".join(lines) + "\n"


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    metadata, training = config["metadata"], config["metadata"].get("training")
    facts = {}
    if config["stages"]:
        ratios = ", ".join(f"{ratio:.3g}" for ratio in config["keep_ratios"])
        facts["pruned before blocks"] = f"{', '.join(map(str, config['stages']))}, to {ratios} of the patches"
        facts["by"] = ", ".join(f"{part} {config[part]['name']}" for part in ("scorer", "selector", "reducer"))
    else:
        facts["pruned"] = "nowhere: a dense model"
    if size := config["model_kwargs"].get("img_size"):
        facts["images"] = f"{size if isinstance(size, int) else ' x '.join(map(str, size))} px"
    names = metadata.get("class_names")
    if isinstance(names, list) and names:
        reid = "num_identities" in config
        facts["identities" if reid else "classes"] = f"{len(names):,}" + f": {listed(names, 20)}" * (not reid)
    # what somebody else calls so, and what was found of the model as it was, is left out
    if isinstance(training, dict) and training.keys() >= _OF_TRAINING and training["stages"] == config["stages"]:
        facts["trained on"] = f"{training['data']}, {training['images']} images, {training['epochs']} epochs"
        kept = ", ".join(f"{ratio:.3g}" for ratio in training["keep_ratios"])
        facts["validation"] = f"{training['result']}" + f", at {kept} of the patches" * bool(kept)
    facts["license"] = metadata.get("license") or "not stated"
    return facts


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
