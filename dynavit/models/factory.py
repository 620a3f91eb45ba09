"""Making pruned models: from a timm name, around a model, or from a saved folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from dynavit.errors import InputError, did_you_mean
from dynavit.models.adapters import create_adapter
from dynavit.models.pruned_vit import PrunedViT
from dynavit.reducers import Reducer, create_reducer
from dynavit.selectors import Selector, create_selector

DEFAULT_KEEP_RATIO = 0.7


def create_model(
    architecture: str,
    pretrained: bool = False,
    *,
    stages: Sequence[int] | None = None,
    keep_ratio: float | None = None,
    keep_ratios: Sequence[float] | None = None,
    selector: str | Mapping[str, Any] | Selector = "topk",
    reducer: str | Mapping[str, Any] | Reducer = "drop",
    **model_kwargs: Any,
) -> PrunedViT:
    """Create a timm Vision Transformer that prunes tokens.

    Args:
        architecture: timm model name.
        pretrained: load timm's weights.
        stages: prune before these blocks (0-based); a quarter, half and three quarters of the depth
            if None, as DynamicViT does; ``()`` prunes nowhere.
        keep_ratio: r keeps r, r^2, r^3 ... of the original patches over the stages; 0.7 by default.
        keep_ratios: one ratio a stage, in place of ``keep_ratio``.
        selector: a registered name, ``{"name": ..., option: value}`` or an instance.
        reducer: likewise.
        model_kwargs: everything else goes to ``timm.create_model``.

    Raises:
        InputError: unknown name or impossible value.
        TypeError: a backbone that cannot be pruned; the message lists those that can.

    Example:
        >>> model = create_model("test_vit", num_classes=10, stages=(2, 4), keep_ratio=0.5)
        >>> model.keep_ratios
        (0.5, 0.25)
    """
    try:
        source, name = timm.models.parse_model_name(architecture)
    except (ValueError, AssertionError) as error:  # names a source that timm does not know, or looks like a path
        raise InputError(f"{architecture!r} is no timm model name. {error}") from None
    if source is None and not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(architecture, timm.list_models())
        if "/" in architecture:
            hint = f" A model of the Hugging Face Hub is written 'hf-hub:{architecture}'."
        raise InputError(f"timm has no model {architecture!r}.{hint} timm.list_models('*vit*') lists what there is.")
    for key in {"img_size", "patch_size"} & model_kwargs.keys():
        if isinstance(model_kwargs[key], list):  # as JSON and YAML hand it over
            model_kwargs[key] = tuple(model_kwargs[key])
    backbone = _create_backbone(architecture, pretrained, model_kwargs)
    return prune(
        backbone,
        stages=stages,
        keep_ratio=keep_ratio,
        keep_ratios=keep_ratios,
        selector=selector,
        reducer=reducer,
        architecture=architecture,
        model_kwargs=model_kwargs,
    )


def prune(
    backbone: nn.Module,
    *,
    stages: Sequence[int] | None = None,
    keep_ratio: float | None = None,
    keep_ratios: Sequence[float] | None = None,
    selector: str | Mapping[str, Any] | Selector = "topk",
    reducer: str | Mapping[str, Any] | Reducer = "drop",
    architecture: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> PrunedViT:
    """Wrap a timm model one already has. It is shared, not copied, and not edited.

    Args:
        backbone: a timm Vision Transformer.
        architecture: timm name of the backbone, needed to save the pruned model.
        model_kwargs: what timm created it with, likewise.

    The other arguments are those of :func:`create_model`.

    Raises:
        InputError: an impossible value.
        TypeError: a backbone that cannot be pruned.
    """
    depth = create_adapter(backbone).depth
    if keep_ratio is not None and keep_ratios is not None:
        raise InputError("give keep_ratio (one number) or keep_ratios (one a stage), not both.")
    if keep_ratios is None:
        keep_ratios = DEFAULT_KEEP_RATIO if keep_ratio is None else keep_ratio  # type: ignore[assignment]
    model = PrunedViT(
        backbone,
        stages=default_stages(depth) if stages is None else stages,
        keep_ratios=keep_ratios,  # type: ignore[arg-type]
        selector=_created(selector, Selector, create_selector),
        reducer=_created(reducer, Reducer, create_reducer),
    )
    model.architecture = architecture
    model.model_kwargs = dict(model_kwargs or {})
    return model.train(backbone.training)


def load(path: str | Path, **kwargs: Any) -> PrunedViT:
    """Load a model saved with ``save_pretrained``: a folder, or a repository of the Hugging Face Hub.

    Args:
        path: folder or Hub repository id.
        kwargs: replace saved settings (``keep_ratio=0.5``), or go to huggingface_hub.

    Returns:
        The model in eval mode.

    Raises:
        InputError: no such folder or repository, or files that are missing, damaged or of another
            model.
    """
    return PrunedViT.from_pretrained(path, **kwargs)


def default_stages(depth: int) -> tuple[int, ...]:
    """Return a quarter, half and three quarters of the depth: (3, 6, 9) of 12 blocks."""
    return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0}))


def _create_backbone(architecture: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    try:
        backbone: Any = timm.create_model(architecture, pretrained=pretrained, **kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"timm cannot create {architecture} with {kwargs}: {reason}") from error
    except OSError as error:  # its weights could not be fetched
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the weights of {architecture} could not be downloaded ({reason}): connect, or use pretrained=False."
        ) from error
    embed = getattr(backbone, "patch_embed", None)
    size, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    padded = getattr(embed, "dynamic_img_pad", False)
    if size is not None and patch is not None and not padded and any(s % p for s, p in zip(size, patch, strict=True)):
        # timm leaves out the rest of the image without a word
        raise InputError(
            f"img_size={tuple(size)} is no multiple of the patch size {tuple(patch)} of {architecture}: choose one "
            f"that is, or pass dynamic_img_size=True, dynamic_img_pad=True."
        )
    return backbone


def _created(part: Any, kind: type[nn.Module], create: Any) -> Any:
    if isinstance(part, kind):
        return part
    if isinstance(part, str):
        return create(part)
    if isinstance(part, Mapping) and "name" in part:
        return create(**part)
    noun = kind.__name__.lower()
    raise InputError(f"{noun}={part!r}: give a name, a mapping with 'name', or a {kind.__name__}.")
