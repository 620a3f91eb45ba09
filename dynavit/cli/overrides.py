"""Which settings on the command line a command can honour, once a model is trained; the others are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynavit.errors import InputError

TO_READ_IMAGES = ("data.mean", "data.std", "data.interpolation", "data.crop_pct")
"""How any image is prepared for the model."""
TO_EXPORT = (
    *TO_READ_IMAGES,
    *("data.name", "data.root", "data.validation_split", "data.download", "data.corrupt", "data.options"),
)
"""Also, which validation data a model is checked on."""
TO_EVALUATE = (*TO_EXPORT, "data.train_split", "data.batch_size", "data.workers", "evaluate")
"""Also, how it is judged."""


def honour(overrides: Sequence[str], honoured: Sequence[str], idle: Mapping[str, str] | None = None) -> None:
    """Refuse settings that would change nothing; those that do not exist are left to be refused by name.

    Args:
        overrides: ``key.subkey=value``.
        honoured: keys, or whole sections.
        idle: of those, keys that do nothing this time, and why.

    Raises:
        InputError: naming the key, and what to do.
    """
    from dynavit.config.overrides import named_settings

    for override in overrides:
        for key in named_settings(override):
            if idle and key in idle:
                raise InputError(f"{override}: {idle[key]}; leave it out.")
            if key not in honoured and key.partition(".")[0] not in honoured:
                raise InputError(f"{override}: {_advice(key, honoured)}.")


def _advice(key: str, honoured: Sequence[str]) -> str:
    section = key.partition(".")[0]
    if key in ("model.keep_ratio", "model.keep_ratios"):
        flag = "--keep-ratios R,R" if "evaluate" in honoured else "--keep-ratio R"
        return f"the ratio of a trained model is changed with {flag}"
    if key in ("output_dir", "name"):
        return "this names the folder of a training; choose the place of results with --output"
    if section == "evaluate":
        return "this is a setting of evaluate and does nothing here; leave it out"
    if key in TO_EVALUATE:
        why = "the images come from --images" if key in TO_EXPORT and "data.root" not in honoured else "not used here"
        return f"this does nothing, {why}; leave it out"
    return "this shapes training and cannot change a trained model; leave it out, or train again with it"
