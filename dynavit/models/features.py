"""The two halves of a forward, as timm's models have them: features, and what is made of them.

:class:`~dynavit.models.pruned_vit.PrunedViT` has each of these as a method of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dynavit.models.execution import check_pooling
from dynavit.models.guides import find_present

if TYPE_CHECKING:
    from dynavit.models.pruned_vit import PrunedViT


def forward_features(
    model: PrunedViT,
    images: Tensor,
    return_trace: bool = False,
    cameras: Tensor | None = None,
    views: Tensor | None = None,
    guide: Tensor | None = None,
    present: Tensor | None = None,
) -> Any:
    """Return the tokens after the last norm, ``(B, P + n, D)``, and with them the trace if asked.

    Where tokens do not all count alike, pooling has to know: pass ``trace.weight`` on to :func:`forward_head`.

    Args:
        model: in eval mode or training.
        images: as in the forward. Of M spectra each image has its tokens, ``(B M, P + n, D)``.
        return_trace: also return what happened to the tokens.
        cameras, views, guide, present: as in the forward.
    """
    present = find_present(model, images, present)
    tokens = model.embed(images, cameras, views, present, follow=return_trace)
    model.run(tokens, model.request(tokens, guide=guide, present=present))
    x = model.adapter.norm(tokens.x)
    return (x, model.record(x, tokens)) if return_trace else x


def features_and_logits(
    model: PrunedViT, images: Tensor, cameras: Tensor | None = None, views: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the pooled features before the classifier, ``(B, D)``, and the logits, of one forward.

    Args:
        model: a classifier.
        images, cameras, views: as in the forward.
    """
    tokens = model.embed(images, cameras, views, follow=False)
    model.run(tokens, model.request(tokens))
    x = model.adapter.norm(tokens.x)
    return model.pool(x, tokens.weight, pre_logits=True), model.pool(x, tokens.weight)


def forward_head(
    model: PrunedViT, x: Tensor, pre_logits: bool = False, weight: Tensor | None = None, present: Tensor | None = None
) -> Any:
    """Pool tokens and classify or embed them.

    Args:
        model: in eval mode or training.
        x: what :func:`forward_features` returned.
        pre_logits: stop before the classifier or the neck; of M spectra with ``(B M, D)``.
        weight: ``trace.weight`` of the same forward. Needed where tokens do not all count alike: in mask execution,
            with thresholds, after merging, and for images of different sizes (NaFlexViT).
        present: as in the forward.

    Raises:
        InputError: no weight is given, the model pools over tokens, and they do not all count alike.
    """
    if weight is None:
        check_pooling(model)
    present = find_present(model, x.unflatten(0, (-1, model.num_spectra)), present)
    return model.pool(x, weight, pre_logits, present)
