"""What users of timm expect of a model, answered by the backbone or by what took the place of its classifier.

:class:`~dynavit.models.pruned_vit.PrunedViT` has each of these as a method or property of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from dynavit.errors import InputError
from dynavit.numbers import checked_whole
from dynavit.text import first_line

if TYPE_CHECKING:
    from dynavit.models.pruned_vit import PrunedViT


def num_classes(model: PrunedViT) -> int:
    """Number of classes of the head, or of training identities of the neck."""
    return head_classes(model.backbone) if model.neck is None else model.neck.num_identities


def num_features(model: PrunedViT) -> int:
    """Width of the features that the head receives."""
    return int(model.backbone.num_features) if model.neck is None else model.neck.num_features


def num_prefix_tokens(model: PrunedViT) -> int:
    """P: class, distillation and register tokens, which are never dropped."""
    return model.adapter.num_prefix_tokens


def embed_dim(model: PrunedViT) -> int:
    """Width D of the tokens."""
    return int(model.backbone.embed_dim)


def pretrained_cfg(model: PrunedViT) -> dict[str, Any]:
    """timm's description of the weights, read by ``timm.data.resolve_model_data_config``."""
    return model.backbone.pretrained_cfg


def get_classifier(model: PrunedViT) -> nn.Module:
    """Return the classifier layer."""
    return model.backbone.get_classifier() if model.neck is None else model.neck.classifier


def reset_classifier(model: PrunedViT, num_classes: int, global_pool: str | None = None) -> None:
    """Replace the classifier, as timm's method does; of a neck, that of its identities.

    Names of classes in the metadata are dropped where they are of another number.

    Raises:
        InputError: a number of classes that cannot be, or that no memory holds.
    """
    try:
        if model.neck is None:
            model.backbone.reset_classifier(checked_whole("num_classes", num_classes, 0), global_pool)
        else:
            model.neck.reset(num_classes)
    except (RuntimeError, OverflowError) as error:  # of torch's allocator
        raise InputError(f"num_classes={num_classes}: no memory for as many ({first_line(error)}).") from None
    if model.neck is not None and global_pool is not None:
        model.backbone.reset_classifier(0, global_pool)
        check_neck(model)
    if len(model.metadata.get("class_names") or ()) != num_classes:
        model.metadata = {key: value for key, value in model.metadata.items() if key != "class_names"}


def set_input_size(model: PrunedViT, *args: Any, **kwargs: Any) -> None:
    """Change the image or patch size, as timm's method does.

    Raises:
        InputError: the backbone has no such method: it takes images of any size.
    """
    if not hasattr(model.backbone, "set_input_size"):
        raise InputError(f"{type(model.backbone).__name__} takes images of any size as it is: call it with them.")
    model.backbone.set_input_size(*args, **kwargs)


def set_grad_checkpointing(model: PrunedViT, enable: bool = True) -> None:
    """Recompute blocks in backward instead of storing their activations."""
    model.backbone.set_grad_checkpointing(enable)


def no_weight_decay(model: PrunedViT) -> set[str]:
    """Return names of parameters to leave out of weight decay, the scorers' included."""
    backbone = {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    side = {"side.table"} if model.side is not None else set()  # as position embeddings
    return backbone | side | {f"scorers.{name}" for name, _ in model.scorers.named_parameters()}


def group_matcher(model: PrunedViT, coarse: bool = False) -> dict[str, Any]:
    """Return timm's layer groups for layer-wise learning rates, names prefixed by backbone."""
    groups = model.backbone.group_matcher(coarse=coarse)
    return {name: _prefixed(pattern) for name, pattern in groups.items()}


def check_neck(model: PrunedViT) -> None:
    """Refuse a backbone that a neck has no use for.

    Raises:
        InputError: it classifies itself, or does not pool.
    """
    if model.neck is None:
        return
    if model.backbone.num_classes > 0:
        raise InputError(
            f"num_identities={model.neck.num_identities}: this backbone has a classifier of its own, which would "
            f"never be used. Create it with num_classes=0, or call backbone.reset_classifier(0) first."
        )
    if model.backbone.global_pool == "":
        raise InputError(
            "num_identities=... needs one feature an image: create the backbone with global_pool='token' or 'avg'."
        )


def head_classes(backbone: Any) -> int:
    """Return the number of classes of a backbone's head, which may have been replaced by hand."""
    head = getattr(backbone, "head", None)
    if isinstance(head, nn.Linear):
        return head.out_features
    return 0 if isinstance(head, nn.Identity) else int(backbone.num_classes)


def _prefixed(pattern: Any) -> Any:
    """Make timm's regular expressions match below ``backbone.``."""
    if isinstance(pattern, str):
        return rf"^backbone\.(?:{pattern.replace('^', '')})"
    return [(_prefixed(expression), order) for expression, order in pattern]
