"""Refusing an execution that the parts of a model do not allow, and scorers that its backbone does not."""

from __future__ import annotations

from typing import Any

from dynavit.adapters.attention import check_attention
from dynavit.adapters.latent import check_latent
from dynavit.errors import InputError, UnsupportedBackbone
from dynavit.models.guides import check_unguided
from dynavit.reducers import Merge


def check_execution(model: Any) -> None:
    """Refuse an execution that the parts of a model do not allow, in the mode that it is in.

    Raises:
        InputError: naming the part in the way, and what to choose instead.
    """
    if not model.stages:
        return
    execution = "gather" if model.gathers else "mask"
    reducer, selector = type(model.reducer).__name__, type(model.selector).__name__
    if execution == "mask" and model.only_gathers:
        raise InputError(f"reducer {reducer} removes tokens, it cannot mask them: use execution='auto'.")
    if model.training and not isinstance(model.reducer, Merge):
        if model.selector.soft and (model.reducer.reads_dropped or not model.reducer.masks):
            raise InputError(
                f"selector {selector} drops no token while training, so reducer {reducer} has nothing to work on: "
                f"choose a selector that decides, such as 'topk', or reducer='drop'."
            )
        if execution == "gather" and model.selector.soft:
            raise InputError(
                f"execution='gather' in training needs a selector that removes tokens; {selector} removes none. Use "
                f"execution='mask' or 'auto'."
            )
        taught = model.reducer.makes or model.reducer.trains_scorer
        if execution == "gather" and not model.probes and learns_by_mask(model) and not taught:
            raise InputError(
                f"execution='gather', probes=0: scorer {model.scorers[0].name!r} learns by the masks of dropped "
                f"tokens, of which none would be left. Give a number of probes, such as 8, or use execution='mask'."
            )


def learns_by_mask(model: Any) -> bool:
    """Tell whether gradients of the masks train a scorer.

    They train none that is frozen or has nothing to learn, nor one that a selector teaches by a reward.
    """
    trained = any(parameter.requires_grad for parameter in model.scorers.parameters())
    return trained and model.selector.trains_scorer


def trains_scorers(model: Any) -> bool:
    """Tell whether the task teaches the scorers: by masks, by a reward, or by what the reducer makes of scores."""
    selector = model.selector
    return selector.trains_scorer or selector.needs_reward or (selector.needs_scores and model.reducer.trains_scorer)


def gathers_in_training(model: Any) -> bool:
    """Tell whether a model removes dropped tokens while it trains; otherwise it masks them.

    ``"auto"`` removes them where as many go in every image and their scorer learns all the same.
    """
    if model.execution != "auto":
        return bool(model.execution == "gather")
    fixed = model.selector.fixed_k and not model.selector.soft
    return model.only_gathers or (fixed and (model.probes > 0 or not learns_by_mask(model)))


def check_scorers(model: Any) -> None:
    """Refuse scorers that a backbone, or the place of a stage, leaves nothing to read or to learn.

    Raises:
        InputError: a stage whose scorer would never learn.
        UnsupportedBackbone: attention, a class token, or a pooling latent that is not there to be read.
    """
    readers = [f"scorer {scorer.name!r}" for scorer in model.scorers if scorer.needs_attention]
    if isinstance(model.reducer, Merge) or readers:
        for stage in model.stages:
            try:
                block = model.backbone.blocks[stage]
                check_attention(getattr(block, "attn", block))
            except UnsupportedBackbone as error:
                reader = readers[0] if readers else "reducer 'merge'"
                raise UnsupportedBackbone(f"{reader}: {error} Scorers 'distinctness' and 'mlp' read none.") from error
    if model.num_spectra > 1:
        check_unguided(model, model.num_spectra)
    for scorer in model.scorers:
        if scorer.needs_latent:
            try:
                check_latent(model.backbone)
            except UnsupportedBackbone as error:
                raise UnsupportedBackbone(f"scorer {scorer.name!r}: {error}") from error
        if scorer.needs_class_token and not model.adapter.has_class_token:
            raise UnsupportedBackbone(
                f"scorer {scorer.name!r} reads the attention of the class token, and this backbone has none: use "
                f"'mean_attention', 'attention_received' or a learned scorer."
            )
        unread = model.placement == "inside" and model.adapter.depth - 1 in model.stages
        if scorer.learned and unread and model.backbone.global_pool == "token":
            raise InputError(
                f"stages={list(model.stages)}, placement='inside': after the attention of the last block only the "
                f"class token is read, so the stage there saves little and its scorer {scorer.name!r} would never "
                f"learn: leave it out."
            )


def check_pooling(model: Any) -> None:
    """Refuse to pool without a weight where tokens do not all count alike.

    Raises:
        InputError: saying where the weight is.
    """
    # in eval a stage at ratio 1.0 does nothing, and then all tokens count alike
    adaptive = model.thresholds is not None and not model.training
    prunes = bool(model.stages) if model.training else any(ratio < 1 for ratio in model.keep_ratios)
    hides = not model.gathers or (model.training and (learns_by_mask(model) or not model.selector.fixed_k))
    differ = adaptive or (prunes and (hides or model.reducer.tracks_sizes))
    if differ and model.backbone.global_pool not in ("token", ""):
        raise InputError(
            "forward_head: tokens do not all count alike here (dropped ones are masked in training and with "
            "execution='mask', shorter images are padded, merged tokens are several), so pooling needs to know: "
            "use forward_features(images, return_trace=True) and forward_head(x, weight=trace.weight)."
        )
