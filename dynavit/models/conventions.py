"""The interface that users of timm expect of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from dynavit.errors import InputError
from dynavit.models.ratios import checked_whole
from dynavit.text import first_line

if TYPE_CHECKING:
    from dynavit.adapters import BackboneAdapter
    from dynavit.models.heads import BNNeck
    from dynavit.models.side import SideEmbedding


class TimmConventions:
    """timm's properties and methods, answered by the backbone, or by what took the place of its classifier."""

    backbone: Any
    metadata: dict[str, Any]
    adapter: BackboneAdapter
    neck: BNNeck | None
    side: SideEmbedding | None
    scorers: nn.ModuleList

    @property
    def num_classes(self) -> int:
        """Number of classes of the head, or of training identities of the neck."""
        return head_classes(self.backbone) if self.neck is None else self.neck.num_identities

    @property
    def num_features(self) -> int:
        """Width of the features that the head receives."""
        return int(self.backbone.num_features)

    @property
    def embed_dim(self) -> int:
        """Width D of the tokens."""
        return int(self.backbone.embed_dim)

    @property
    def num_prefix_tokens(self) -> int:
        """P: class, distillation and register tokens, which are never dropped."""
        return self.adapter.num_prefix_tokens

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the weights, read by ``timm.data.resolve_model_data_config``."""
        return self.backbone.pretrained_cfg

    default_cfg = pretrained_cfg

    def get_classifier(self) -> nn.Module:
        """Return the classifier layer."""
        return self.backbone.get_classifier() if self.neck is None else self.neck.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, as timm's method does; of a neck, that of its identities.

        Names of classes in the metadata are dropped where they are of another number.

        Raises:
            InputError: a number of classes that cannot be, or that no memory holds.
        """
        try:
            if self.neck is None:
                self.backbone.reset_classifier(checked_whole("num_classes", num_classes, 0), global_pool)
            else:
                self.neck.reset(num_classes)
        except (RuntimeError, OverflowError) as error:  # of torch's allocator
            raise InputError(f"num_classes={num_classes}: no memory for as many ({first_line(error)}).") from None
        if self.neck is not None and global_pool is not None:
            self.backbone.reset_classifier(0, global_pool)
            self._check_head()
        if len(self.metadata.get("class_names") or ()) != num_classes:
            self.metadata = {key: value for key, value in self.metadata.items() if key != "class_names"}

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the image or patch size, as timm's method does.

        Raises:
            InputError: the backbone has no such method: it takes images of any size.
        """
        if not hasattr(self.backbone, "set_input_size"):
            raise InputError(f"{type(self.backbone).__name__} takes images of any size as it is: call it with them.")
        self.backbone.set_input_size(*args, **kwargs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in backward instead of storing their activations."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters to leave out of weight decay, the scorers' included."""
        backbone = {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
        side = {"side.table"} if self.side is not None else set()  # as position embeddings
        return backbone | side | {f"scorers.{name}" for name, _ in self.scorers.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's layer groups for layer-wise learning rates, names prefixed by backbone."""
        groups = self.backbone.group_matcher(coarse=coarse)
        return {name: _prefixed(pattern) for name, pattern in groups.items()}

    def _check_head(self) -> None:
        if self.neck is None:
            return
        if self.backbone.num_classes > 0:
            raise InputError(
                f"num_identities={self.neck.num_identities}: this backbone has a classifier of its own, which would "
                f"never be used. Create it with num_classes=0, or call backbone.reset_classifier(0) first."
            )
        if self.backbone.global_pool == "":
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
