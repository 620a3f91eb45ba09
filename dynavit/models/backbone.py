"""Making timm models, with errors that say what to do."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
from timm.models.naflexvit import NaFlexVit
from torch import nn

from dynavit.errors import InputError, did_you_mean
from dynavit.models.patches import OverlappingPatchEmbed
from dynavit.numbers import checked_whole, is_number
from dynavit.text import first_line

RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_LEAST = {"num_classes": 0, "in_chans": 1, "depth": 1, "embed_dim": 1, "num_heads": 1}  # 0 classes: no head


def create_backbone(architecture: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create a timm model, with overlapping patches where ``patch_stride`` is given.

    Raises:
        InputError: unknown name or impossible value.
    """
    if not isinstance(architecture, str) or not architecture:
        raise InputError(f"architecture={architecture!r}: give a timm model name, such as 'deit_small_patch16_224'.")
    try:
        source, name = timm.models.parse_model_name(architecture)
    except (ValueError, AssertionError) as error:  # names a source that timm does not know, or looks like a path
        raise InputError(f"{architecture!r} is no timm model name. {error}") from None
    if source is None and not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(architecture, timm.list_models())
        if "/" in architecture:
            hint = f" A model of the Hugging Face Hub is written 'hf-hub:{architecture}'."
        raise InputError(
            f"architecture: timm has no model {architecture!r}.{hint} timm.list_models('*vit*') lists what there is."
        )
    for key in {"img_size", "patch_size", "patch_stride"} & kwargs.keys():
        kwargs[key] = _size(key, kwargs[key])
    _check_numbers({key: value for key, value in kwargs.items() if value is not None})  # None leaves it to timm
    options = {key: value for key, value in kwargs.items() if key != "patch_stride"}
    if kwargs.get("patch_stride") is not None:
        options["embed_layer"] = partial(OverlappingPatchEmbed, stride=kwargs["patch_stride"])
    try:
        backbone: Any = timm.create_model(architecture, pretrained=pretrained, **options)
    except InputError:
        raise
    except OSError as error:  # its weights could not be fetched
        raise InputError(
            f"the weights of {architecture} could not be downloaded ({first_line(error)}): connect, start from a file "
            f"(model.checkpoint=FILE in a configuration), or from nothing (pretrained=False, model.pretrained=false)."
        ) from error
    except Exception as error:  # what a model says of arguments that it cannot have is of any kind
        raise InputError(f"timm cannot create {architecture} with kwargs {kwargs}: {first_line(error)}") from error
    if isinstance(backbone, NaFlexVit):
        _remember_size(backbone, kwargs.get("img_size"))
        return backbone
    embed = getattr(backbone, "patch_embed", None)
    if isinstance(embed, OverlappingPatchEmbed):
        return backbone
    size, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    padded = getattr(embed, "dynamic_img_pad", False)
    if size is not None and patch is not None and not padded and any(s % p for s, p in zip(size, patch, strict=True)):
        # timm leaves out the rest of the image without a word
        raise InputError(
            f"img_size={tuple(size)} is no multiple of the patch size {tuple(patch)} of {architecture}: choose one "
            f"that is, or pass dynamic_img_size=True, dynamic_img_pad=True."
        )
    return backbone


def _remember_size(backbone: Any, size: int | tuple[int, int] | None) -> None:
    """Make an image size that was asked for the one that data are brought to; NaFlexVit takes any and forgets it."""
    if size is None:
        return
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = backbone.embeds.patch_size
    if height % rows or width % columns:
        raise InputError(
            f"img_size={(height, width)} is no multiple of the patch size {(rows, columns)}: choose one that is."
        )
    channels = backbone.pretrained_cfg["input_size"][0]
    backbone.pretrained_cfg = backbone.default_cfg = {
        **backbone.pretrained_cfg,
        "input_size": (channels, height, width),
    }


def _check_numbers(kwargs: dict[str, Any]) -> None:
    """Refuse numbers of which timm makes a model that cannot run, or says nothing of use."""
    for key in _LEAST.keys() & kwargs.keys():
        checked_whole(key, kwargs[key], _LEAST[key])
    for key in kwargs.keys() & set(RATES):
        if not is_number(kwargs[key]) or not 0 <= kwargs[key] < 1:
            raise InputError(f"{key}={kwargs[key]!r}: a number in [0, 1).")


def _size(key: str, value: Any) -> Any:
    """Return a number of pixels, or a tuple of two; lists are as JSON and YAML hand it over."""
    pair = list(value) if isinstance(value, list | tuple) else [value, value]
    whole = all(isinstance(pixels, int) and not isinstance(pixels, bool) and pixels > 0 for pixels in pair)
    if value is not None and not (whole and len(pair) == 2):
        raise InputError(f"{key}={value!r}: a number of pixels above 0, or height and width as [height, width].")
    return tuple(value) if isinstance(value, list) else value
