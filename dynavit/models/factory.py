"""Making pruned models: from a timm name, around a model, or from a saved folder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dynavit.errors import InputError
from dynavit.models.adapters import create_adapter
from dynavit.models.backbone import create_backbone
from dynavit.models.counts import CountRule, is_number
from dynavit.models.heads import BNNeck, EmbeddingPlace
from dynavit.models.pruned_vit import Placement, PrunedViT
from dynavit.models.rebuild import find_origin
from dynavit.models.side import SideEmbedding
from dynavit.reducers import Reducer, create_reducer
from dynavit.scorers import create_scorer
from dynavit.selectors import Selector, create_selector
from dynavit.text import first_line

DEFAULT_KEEP_RATIO = 0.7


def create_model(
    architecture: str,
    pretrained: bool = False,
    *,
    stages: Sequence[int] | None = None,
    keep_ratio: float | None = None,
    keep_ratios: Sequence[float] | None = None,
    selector: str | Mapping[str, Any] | Selector = "topk",
    scorer: str | Mapping[str, Any] = "mlp",
    reducer: str | Mapping[str, Any] | Reducer = "drop",
    placement: Placement = "before",
    count_rule: CountRule = "original",
    num_identities: int | None = None,
    embedding: EmbeddingPlace = "after",
    side: Mapping[str, Any] | None = None,
    **model_kwargs: Any,
) -> PrunedViT:
    """Create a timm Vision Transformer that prunes tokens.

    Args:
        architecture: timm model name.
        pretrained: load timm's weights.
        stages: prune at these blocks (0-based); a quarter, half and three quarters of the depth
            if None, as DynamicViT does; ``()`` prunes nowhere.
        keep_ratio: r keeps r, r^2, r^3 ... of the original patches over the stages; 0.7 by default. See
            :meth:`PrunedViT.set_keep_ratio`.
        keep_ratios: one ratio a stage, in place of ``keep_ratio``.
        selector: a registered name, ``{"name": ..., option: value}`` or an instance.
        scorer: what gives every token its logit, one instance a stage: a name or ``{"name": ..., option: value}``.
        reducer: what becomes of tokens not kept: likewise, or an instance.
        placement: prune "before" a stage's block, or "inside" it, between its attention and its MLP.
        count_rule: what ratios mean, "original", "linear" or "current"; see :meth:`PrunedViT.set_keep_ratio`.
        num_identities: make a re-identification model: a :class:`~dynavit.models.heads.BNNeck` for
            this number of training identities takes the place of the classifier.
        embedding: what such a model returns in eval: the feature "after" or "before" the batch norm.
        side: tell the model the camera of each image, and the view if that matters:
            ``{"cameras": 6, "views": 1, "scale": 3.0}``, of which only the first is needed. See
            :class:`~dynavit.models.side.SideEmbedding`.
        model_kwargs: everything else goes to ``timm.create_model``; but for ``patch_stride``, smaller than
            the patch size, which makes patches overlap: see
            :class:`~dynavit.models.patches.OverlappingPatchEmbed`.

    Warns:
        UserWarning: overlapping patches that do not reach the border of the image.

    Raises:
        InputError: unknown name or impossible value.
        TypeError: a backbone that cannot be pruned; the message lists those that can.

    Example:
        >>> model = create_model("test_vit", num_classes=10, stages=(2, 4), keep_ratio=0.5)
        >>> model.keep_ratios
        (0.5, 0.25)
        >>> create_model("test_vit", num_identities=751).neck.classifier
        Linear(in_features=64, out_features=751, bias=False)
    """
    if num_identities is not None:
        if model_kwargs.get("num_classes", 0) != 0:
            raise InputError(
                f"num_classes={model_kwargs['num_classes']} and num_identities={num_identities}: a model either "
                f"classifies or embeds; give one of them."
            )
        model_kwargs["num_classes"] = 0
    backbone = create_backbone(architecture, pretrained, **model_kwargs)
    _tell_unused_pixels(backbone)
    model = prune(
        backbone,
        stages=stages,
        keep_ratio=keep_ratio,
        keep_ratios=keep_ratios,
        selector=selector,
        scorer=scorer,
        reducer=reducer,
        placement=placement,
        count_rule=count_rule,
        num_identities=num_identities,
        embedding=embedding,
        side=side,
    )
    model.architecture, model.model_kwargs = architecture, model_kwargs  # which did make it: nothing to find out
    return model


def prune(
    backbone: nn.Module,
    *,
    stages: Sequence[int] | None = None,
    keep_ratio: float | None = None,
    keep_ratios: Sequence[float] | None = None,
    selector: str | Mapping[str, Any] | Selector = "topk",
    scorer: str | Mapping[str, Any] = "mlp",
    reducer: str | Mapping[str, Any] | Reducer = "drop",
    placement: Placement = "before",
    count_rule: CountRule = "original",
    num_identities: int | None = None,
    embedding: EmbeddingPlace = "after",
    side: Mapping[str, Any] | None = None,
    architecture: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> PrunedViT:
    """Wrap a timm model one already has. It is shared, not copied, and not edited.

    Args:
        backbone: a timm Vision Transformer.
        architecture: timm name of the backbone. Saving needs to know how to make it again; where this is left out,
            that is what timm wrote into the backbone.
        model_kwargs: what timm created it with; what is left out is read off the backbone where that is possible.

    The other arguments are those of :func:`create_model`.

    Raises:
        InputError: an impossible value; or ``architecture`` does not make this backbone, so that it could not be saved.
        TypeError: a backbone that cannot be pruned.
    """
    adapter = create_adapter(backbone)
    depth, width = adapter.depth, int(adapter.backbone.embed_dim)
    if keep_ratio is not None and keep_ratios is not None:
        raise InputError("give keep_ratio (one number) or keep_ratios (one a stage), not both.")
    if keep_ratios is None:
        keep_ratios = DEFAULT_KEEP_RATIO if keep_ratio is None else keep_ratio  # type: ignore[assignment]
    model = PrunedViT(
        backbone,
        stages=default_stages(depth) if stages is None else stages,
        keep_ratios=keep_ratios,  # type: ignore[arg-type]
        selector=_created(selector, Selector, create_selector),
        reducer=_created(reducer, Reducer, partial(create_reducer, dim=width)),
        create_scorer=lambda dim: _described(scorer, "scorer", partial(create_scorer, dim=dim)),
        placement=placement,
        count_rule=count_rule,
        neck=_created_neck(backbone, num_identities, embedding),
        side=_created_side(backbone, side),
    )
    if architecture is not None:  # saving compares outputs too
        find_origin(adapter, architecture, model_kwargs or {}, run=False)
    model.architecture = architecture
    model.scorer = {"name": scorer} if isinstance(scorer, str) else dict(scorer)
    model.model_kwargs = dict(model_kwargs or {})
    return model.train(backbone.training)


def load(path: str | Path, **kwargs: Any) -> PrunedViT:
    """Load a model saved with ``save_pretrained``: a folder, or a repository of the Hugging Face Hub.

    Args:
        path: folder or Hub repository id.
        kwargs: replace saved settings (``keep_ratio=0.5``), or go to huggingface_hub; with ``img_size``, position
            embeddings are resampled.

    Returns:
        The model in eval mode.

    Raises:
        InputError: no such folder or repository, or files that are missing, damaged or of another
            model.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"load({path!r}): give a folder, or a repository of the Hugging Face Hub.")
    return PrunedViT.from_pretrained(path, **kwargs)


def default_stages(depth: int) -> tuple[int, ...]:
    """Return a quarter, half and three quarters of the depth: (3, 6, 9) of 12 blocks."""
    return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0}))


def _tell_unused_pixels(backbone: Any) -> None:
    unused = getattr(getattr(backbone, "patch_embed", None), "unused", None)
    if unused is not None and any(unused):
        embed = backbone.patch_embed
        warnings.warn(
            f"patches of {tuple(embed.patch_size)} pixels every {embed.stride} leave the last {unused[0]} rows and "
            f"{unused[1]} columns of {tuple(embed.img_size)} unused.",
            stacklevel=3,
        )


def _created_neck(backbone: Any, num_identities: int | None, embedding: EmbeddingPlace) -> BNNeck | None:
    if num_identities is not None:
        try:
            return BNNeck(backbone.num_features, num_identities, embedding)
        except (RuntimeError, TypeError, OverflowError) as error:  # of torch's allocator
            raise InputError(f"num_identities={num_identities}: no memory for as many ({first_line(error)}).") from None
    if embedding != "after":
        raise InputError(f"embedding={embedding!r} belongs to re-identification models: give num_identities as well.")
    return None


def _created_side(backbone: Any, options: Mapping[str, Any] | None) -> SideEmbedding | None:
    if options is None:
        return None
    known = ("cameras", "views", "scale")
    if not isinstance(options, Mapping) or "cameras" not in options or not options.keys() <= set(known):
        raise InputError(f"side={options!r}: give a mapping with 'cameras', and perhaps 'views' and 'scale'.")
    views, scale = options.get("views", 1), options.get("scale", 3.0)
    if not is_number(scale) or not math.isfinite(scale):
        raise InputError(f"side={dict(options)}: scale is a finite number.")
    try:
        return SideEmbedding(options["cameras"], views, backbone.embed_dim, scale)
    except (RuntimeError, TypeError) as error:  # of torch's allocator
        raise InputError(f"side={dict(options)}: no memory for as many ({first_line(error)}).") from None


def _created(part: Any, kind: type[nn.Module], create: Any) -> Any:
    if isinstance(part, kind):
        return part
    return _described(part, kind.__name__.lower(), create, f", or a {kind.__name__}")


def _described(part: Any, noun: str, create: Any, otherwise: str = "") -> Any:
    if isinstance(part, str):
        return create(part)
    if isinstance(part, Mapping) and isinstance(part.get("name"), str) and all(isinstance(key, str) for key in part):
        if "dim" in part:
            raise InputError(f"{noun}={dict(part)}: the width of the tokens is the backbone's; leave out dim.")
        return create(**part)
    shown = type(part).__name__ if isinstance(part, nn.Module) else repr(part)
    raise InputError(f"{noun}={shown}: give a name, or a mapping with 'name'{otherwise}.")
