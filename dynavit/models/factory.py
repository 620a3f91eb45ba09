"""Making pruned models: from a timm name, or around a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from inspect import signature
from typing import Any

from torch import nn

from dynavit.adapters import create_adapter
from dynavit.errors import InputError, did_you_mean
from dynavit.models.backbone import create_backbone
from dynavit.models.heads import BNNeck, EmbeddingPlace
from dynavit.models.pruned_vit import PrunedViT
from dynavit.models.pruning import PRUNING, Pruning
from dynavit.models.rebuild import find_origin
from dynavit.models.side import SideEmbedding
from dynavit.models.spectra import SpectraNeck
from dynavit.numbers import is_finite_number
from dynavit.text import first_line


def create_model(
    architecture: str,
    pretrained: bool = False,
    *,
    num_identities: int | None = None,
    embedding: EmbeddingPlace = "after",
    side: Mapping[str, Any] | None = None,
    spectra: int | None = None,
    **kwargs: Any,
) -> PrunedViT:
    """Create a timm Vision Transformer that prunes tokens.

    Args:
        architecture: timm model name.
        pretrained: load timm's weights.
        num_identities: make a re-identification model: a :class:`~dynavit.models.heads.BNNeck` for
            this number of training identities takes the place of the classifier.
        embedding: what such a model returns in eval: the feature "after" or "before" the batch norm.
        side: tell the model the camera of each image, and the view if that matters:
            ``{"cameras": 6, "views": 1, "scale": 3.0}``, of which only the first is needed. See
            :class:`~dynavit.models.side.SideEmbedding`.
        spectra: make such a model one of M spectra of each sample, such as colour, near infrared and thermal; see
            :mod:`dynavit.models.spectra`. The backbone sees each by itself; the scorer
            ``{"name": "guided", "guides": M - 1}`` compares the tokens of each with the features of the others.
        kwargs: how tokens are shortened, the attributes of :class:`~dynavit.models.pruning.Pruning`: ``stages``,
            ``keep_ratio`` or ``keep_ratios``, ``selector``, ``scorer``, ``reducer``, ``placement``, ``count_rule``.
            Everything else goes to ``timm.create_model``; but for ``patch_stride``, smaller than
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
    pruning = {name: kwargs.pop(name) for name in PRUNING if name in kwargs}
    if num_identities is not None:
        if kwargs.get("num_classes", 0) != 0:
            raise InputError(
                f"num_classes={kwargs['num_classes']} and num_identities={num_identities}: a model either "
                f"classifies or embeds; give one of them."
            )
        kwargs["num_classes"] = 0
    backbone = create_backbone(architecture, pretrained, **kwargs)
    _tell_unused_pixels(backbone)
    model = prune(backbone, num_identities=num_identities, embedding=embedding, side=side, spectra=spectra, **pruning)
    model.architecture, model.model_kwargs = architecture, kwargs  # which did make it: nothing to find out
    return model


OWN = {*PRUNING, *signature(create_model).parameters} - {"kwargs"}
"""Arguments of :func:`create_model` that do not go to timm."""


def prune(
    backbone: nn.Module,
    *,
    num_identities: int | None = None,
    embedding: EmbeddingPlace = "after",
    side: Mapping[str, Any] | None = None,
    spectra: int | None = None,
    architecture: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **pruning: Any,
) -> PrunedViT:
    """Wrap a model one already has. It is shared, not copied, and not edited: what trains or freezes one does both.

    What is made for it is put on its device; parts that are given stay where they are.

    Args:
        backbone: a timm Vision Transformer; or a model of dynavit, dense or pruned, which shares all but how it prunes:
            its backbone, neck, camera embedding and metadata.
        num_identities, embedding, side, spectra: as for :func:`create_model`.
        architecture: timm name of the backbone. Saving needs to know how to make it again; where this is left out,
            that is what timm wrote into the backbone.
        model_kwargs: what timm created it with; what is left out is read off the backbone where that is possible.
        pruning: the attributes of :class:`~dynavit.models.pruning.Pruning`.

    Raises:
        InputError: an impossible value; or ``architecture`` does not make this backbone, so that it could not be saved.
        TypeError: a backbone that cannot be pruned, or an unknown option.
    """
    if unknown := sorted(pruning.keys() - set(PRUNING)):
        raise InputError(f"prune: unknown option {unknown[0]!r}.{did_you_mean(unknown[0], PRUNING)}")
    if isinstance(backbone, PrunedViT):
        given: dict[str, Any] = {
            "num_identities": num_identities,
            "embedding": None if embedding == "after" else embedding,
            "side": side,
            "spectra": spectra,
            "architecture": architecture,
            "model_kwargs": model_kwargs,
        }
        if named := [name for name, value in given.items() if value is not None]:
            raise InputError(f"prune: {named[0]}={given[named[0]]!r} is for a timm model; this one is made already.")
        return _pruned_anew(backbone, pruning)
    adapter = create_adapter(backbone)
    neck = _created_neck(backbone, num_identities, embedding, spectra)
    model = PrunedViT(backbone, Pruning(**pruning), neck, _created_side(backbone, side))
    device = next(backbone.parameters()).device
    if device.type != "meta":
        for part in model.children():
            if part is not backbone and all(part is not given for given in pruning.values()):  # which may be shared
                part.to(device)
    if architecture is not None:  # saving compares outputs too
        find_origin(adapter, architecture, model_kwargs or {}, run=False)
    model.architecture = architecture
    model.model_kwargs = dict(model_kwargs or {})
    return model.train(backbone.training)


def _pruned_anew(source: PrunedViT, pruning: Mapping[str, Any]) -> PrunedViT:
    model = prune(source.backbone, **pruning)
    model.neck, model.side = source.neck, source.side
    model.metadata = {name: deepcopy(value) for name, value in source.metadata.items() if name != "training"}
    model.architecture, model.model_kwargs = source.architecture, dict(source.model_kwargs)
    return model.train(source.training)


def _tell_unused_pixels(backbone: Any) -> None:
    unused = getattr(getattr(backbone, "patch_embed", None), "unused", None)
    if unused is not None and any(unused):
        embed = backbone.patch_embed
        warnings.warn(
            f"patches of {tuple(embed.patch_size)} pixels every {embed.stride} leave the last {unused[0]} rows and "
            f"{unused[1]} columns of {tuple(embed.img_size)} unused.",
            stacklevel=3,
        )


def _created_neck(
    backbone: Any, num_identities: int | None, embedding: EmbeddingPlace, spectra: int | None
) -> BNNeck | None:
    if num_identities is not None:
        try:
            if spectra is not None:
                return SpectraNeck(backbone.num_features, num_identities, spectra, embedding)
            return BNNeck(backbone.num_features, num_identities, embedding)
        except (RuntimeError, TypeError, OverflowError) as error:  # of torch's allocator
            raise InputError(f"num_identities={num_identities}: no memory for as many ({first_line(error)}).") from None
    if embedding != "after":
        raise InputError(f"embedding={embedding!r} belongs to re-identification models: give num_identities as well.")
    if spectra is not None:
        raise InputError(f"spectra={spectra!r} belongs to re-identification models: give num_identities as well.")
    return None


def _created_side(backbone: Any, options: Mapping[str, Any] | None) -> SideEmbedding | None:
    if options is None:
        return None
    known = ("cameras", "views", "scale")
    if not isinstance(options, Mapping) or "cameras" not in options or not options.keys() <= set(known):
        raise InputError(f"side={options!r}: give a mapping with 'cameras', and perhaps 'views' and 'scale'.")
    views, scale = options.get("views", 1), options.get("scale", 3.0)
    if not is_finite_number(scale):
        raise InputError(f"side={dict(options)}: scale is a finite number.")
    try:
        return SideEmbedding(options["cameras"], views, backbone.embed_dim, scale)
    except (RuntimeError, TypeError) as error:  # of torch's allocator
        raise InputError(f"side={dict(options)}: no memory for as many ({first_line(error)}).") from None
