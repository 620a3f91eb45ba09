"""Reading the two files of a saved model, and saying what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dynavit.errors import InputError
from dynavit.files import refuse_special, weights_in
from dynavit.text import first_line, listed

_REQUIRED = {"architecture", "model_kwargs", "stages", "keep_ratios", "selector"}
_OPTIONAL = {
    *("reducer", "scorer", "placement", "count_rule", "thresholds"),
    *("global_pool", "metadata", "num_identities", "embedding", "side", "spectra", "preprocessing"),
}

_TYPES: dict[str, Any] = {
    "architecture": str,
    "model_kwargs": dict,
    "stages": list,
    "keep_ratios": list,
    "selector": dict,
    "reducer": dict,
    "scorer": dict,
    "metadata": dict,
    "preprocessing": dict,
    "thresholds": list,
    "global_pool": str,
}


_BEFORE = re.compile(r"^predictors\.(?=\d)")  # what version 0.1 called scorers
_LEAST = 1e-6  # of what pictures are divided by


def read_config(path: Path) -> dict[str, Any]:
    """Return what ``config.json`` says.

    Raises:
        InputError: it is missing, damaged, not dynavit's, or names a place outside of its folder.
    """
    refuse_special(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: {path.parent} is no dynavit model folder.{_weights_alone(path.parent)}"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # of JSON, or of its encoding
        raise InputError(f"{path} is not valid JSON ({error}): save the model again.") from None
    keys = config.keys() if isinstance(config, dict) else set()
    missing, unknown = _REQUIRED - keys, keys - _REQUIRED - _OPTIONAL
    if missing:
        foreign = {"model_type", "architectures", "pretrained_cfg"} & keys
        way = " dynavit.convert reads folders of Hugging Face's and timm's." if foreign else ""
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by dynavit.{way}")
    if unknown:
        raise InputError(f"{path} holds {', '.join(sorted(unknown))}, which this dynavit does not know.")
    wrong = [key for key, kind in _TYPES.items() if key in config and not isinstance(config[key], kind)]
    if wrong:
        raise InputError(f"{path}: {wrong[0]}={first_line(config[wrong[0]])} is damaged: save the model again.")
    _check_look(path, config.get("preprocessing", {}))
    if ":" in config["architecture"]:
        raise InputError(
            f"{path}: architecture={first_line(config['architecture'])} names a place outside of the folder, which is "
            f"not read: write timm's own name of it there."
        )
    return config


def _finite(text: str) -> float:
    """Return a number of a JSON file; Python would also read NaN, Infinity and 1e999, which are none."""
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"it holds {text}, which is no finite number")
    return number


def _weights_alone(folder: Path) -> str:
    """Return what to do with a folder of weights that nothing describes."""
    weights = weights_in(folder) if folder.is_dir() else []
    if not weights:
        return ""
    return (
        f" It holds weights ({listed(weights, 3)}) without their description: put the config.json that was saved with "
        f"them beside them, or start from the weights alone, model.checkpoint={folder / weights[0]} with "
        f"model.architecture=TIMM_NAME."
    )


def _check_look(path: Path, look: Mapping[str, Any]) -> None:
    """Refuse a description of what the weights expect of pictures that no picture could meet."""
    for key, value in look.items():
        numbers = value if isinstance(value, list) else [value]
        plain = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        if key in ("mean", "std") and not (isinstance(value, list) and value and plain):
            raise InputError(f"{path}: preprocessing.{key}={value!r}: numbers, one for each channel.")
        if key in ("std", "crop_pct") and not (plain and min(numbers) >= _LEAST):
            raise InputError(f"{path}: preprocessing.{key}={value!r}: must be at least {_LEAST:g}.")


def load_weights(model: Any, path: Path, device: str, strict: bool = True) -> None:
    """Load a file of weights into a model that was built for them.

    Raises:
        InputError: the file is missing or damaged, or of another model; what differs is named, and why that may be.
    """
    try:
        state = load_file(path, device=device)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the folder holds no trained model.") from None
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{path} cannot be loaded: it is truncated or damaged ({first_line(error)}). Fetch or save it again."
        ) from None
    state = {_BEFORE.sub("scorers.", name): tensor for name, tensor in state.items()}
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if not (shapes or (strict and (missing or unknown))):
        try:
            model.load_state_dict(state, strict=strict)
        except RuntimeError as error:
            raise InputError(f"{path} cannot be loaded into {model.architecture}: {first_line(error)}.") from None
        return
    differences = [
        f"size mismatch for {name}, {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in shapes[:2]
    ]
    differences += [f"missing: {listed(missing, 3)}"] if missing else []
    differences += [f"unknown: {listed(unknown, 3)}"] if unknown else []
    raise InputError(
        f"{path} cannot be loaded into {model.architecture}: {'; '.join(differences)}. {_why(missing, unknown, shapes)}"
    )


def _why(missing: list[str], unknown: list[str], shapes: list[str]) -> str:
    names = {*missing, *unknown, *shapes}
    parts = {name.partition(".")[0] for name in names}
    if parts <= {"scorers", "reducer", "selector"}:
        return (
            "These are parts that learned for the stages, scorer, selector and reducer saved in the folder: load it "
            "with those, or give its backbone new ones: dynavit.prune(dynavit.load(FOLDER), stages=...), and "
            "train them."
        )
    if all(name.startswith(("neck.classifier.", "neck.each.", "backbone.head.")) for name in names):
        return "The number of classes is another: load it as it is, then model.reset_classifier(NUMBER)."
    if all(name.endswith(("pos_embed", "relative_position_bias_table", "relative_position_index")) for name in names):
        return "The grid of patches is another: load it as it is, then model.set_input_size(img_size=...)."
    return "The file belongs to another model than config.json describes, or the settings given make another."


def usable_device(name: str) -> str:
    """Return a device's name.

    Raises:
        InputError: there is no such device here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"map_location={name!r}: {first_line(error)} Use map_location='cpu', or leave it out."
        ) from None
    return name


def checked_size(size: Any, model: Any) -> Any:
    """Return an image size as a pair.

    Raises:
        InputError: patches do not divide it.
    """
    pair = (size, size) if isinstance(size, int) else size
    whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(side, int) for side in pair)
    if not whole or any(side < patch for side, patch in zip(pair, model.adapter.patch_size, strict=True)):
        raise InputError(f"img_size={size!r}: give pixels, one number or (height, width), at least a patch's.")
    stem = model.adapter.stem
    free = hasattr(stem, "stride") or getattr(stem, "dynamic_img_pad", False)  # of overlapping patches, or padded
    if not free and any(side % patch for side, patch in zip(pair, model.adapter.patch_size, strict=True)):
        raise InputError(f"img_size={size!r} is no multiple of the patch size {model.adapter.patch_size}: choose one.")
    return tuple(pair)
