"""What every selector promises, as a check that authors run on their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynavit.functional import indices_of
from dynavit.selectors.base import Selector
from dynavit.selectors.functional import hard_topk
from dynavit.selectors.selection import Selection

_BATCH, _TOKENS, _K = 4, 12, 5


def check_selector(selector: Selector) -> None:
    """Check that a selector keeps the contract that training, evaluation and export rely on.

    Runs it on small random logits in training and in eval mode; a few milliseconds. Call it in a test.

    Args:
        selector: left in the mode it was in.

    Raises:
        AssertionError: naming every promise that is broken, and what would follow from it.

    Example:
        >>> from dynavit.selectors import create_selector
        >>> check_selector(create_selector("topk"))
    """
    training = selector.training
    broken = []
    for promise, check in _PROMISES.items():
        try:
            wrong = check(selector)
        except Exception as error:
            wrong = f"raised {type(error).__name__}: {error}"
        if wrong:
            broken.append(f"- {promise}: {wrong}")
    selector.train(training)
    if broken:
        raise AssertionError(f"{type(selector).__name__} breaks its contract:\n" + "\n".join(broken))


def _logits(dtype: torch.dtype = torch.float32) -> Tensor:
    values = 2 * torch.randn(_BATCH, _TOKENS, generator=torch.Generator().manual_seed(0))
    return values.to(dtype).requires_grad_()


def _alive() -> Tensor:
    alive = torch.rand(_BATCH, _TOKENS, generator=torch.Generator().manual_seed(1)) < 0.7
    alive[:, :2], alive[:, 2] = True, False
    return alive


def _run(selector: Selector, logits: Tensor, alive: Tensor, training: bool, k: int | Tensor = _K) -> Selection:
    return selector.train(training)(logits, alive, k, 0.8, torch.Generator().manual_seed(2))


def _gradient(selection: Selection, logits: Tensor) -> Tensor | None:
    """The gradient of a random function of what the selector learns from."""
    target = (selection.mask * torch.linspace(-1, 1, _TOKENS)).sum()
    if selection.log_prob is not None:
        target = target + selection.log_prob.sum()
    if not target.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(target, logits, allow_unused=True)
    return gradient


def _shapes(selector: Selector) -> str:
    for training in (True, False):
        selection = _run(selector, _logits(), _alive(), training)
        for name, dtype in (("keep", torch.bool), ("mask", torch.float32), ("probs", torch.float32)):
            tensor = getattr(selection, name)
            if tensor.shape != (_BATCH, _TOKENS) or tensor.dtype != dtype:
                return f"{name} is {tuple(tensor.shape)} {tensor.dtype}, wanted (B, N) {dtype}"
        for name in ("mask", "probs"):
            tensor = getattr(selection, name)
            if not bool(((tensor >= 0) & (tensor <= 1)).all()):
                return f"{name} leaves [0, 1]: a mask above 1 amplifies a token, and log(mask) is the attention bias"
    return ""


def _alive_respected(selector: Selector) -> str:
    alive = _alive()
    for training in (True, False):
        logits = _logits()
        selection = _run(selector, logits, alive, training)
        if bool((selection.keep & ~alive).any()):
            return "keep contains dropped tokens: they would come back, which gathering cannot do; use `& alive`"
        if bool((selection.mask[~alive] != 0).any()) or bool((selection.probs[~alive] != 0).any()):
            return "mask or probs is not 0 on dropped tokens; multiply by alive"
        gradient = _gradient(selection, logits)
        if gradient is not None and bool((gradient[~alive] != 0).any()):
            return "dropped tokens receive a gradient"
    return ""


def _dead_logits_ignored(selector: Selector) -> str:
    alive = _alive()
    for training in (True, False):
        expected = _run(selector, _logits(), alive, training)
        for value in (1e4, -1e4):
            changed = torch.where(alive, _logits(), value)
            selection = _run(selector, changed, alive, training)
            if not torch.equal(selection.keep, expected.keep) or not torch.equal(selection.mask, expected.mask):
                return f"the logits of dropped tokens change the selection (tried {value:g})"
    return ""


def _hard_is_exact(selector: Selector) -> str:
    for training in (True, False) if not selector.soft else (False,):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            selection = _run(selector, _logits(dtype), _alive(), training)
            if not torch.equal(selection.mask, selection.keep.float()):
                return (
                    f"mask differs from keep for {dtype} logits ({'training' if training else 'eval'}): masked and "
                    f"gathered execution would disagree. Use straight_through(keep.float(), soft), or set soft = True"
                )
    return ""


def _finite_gradient(selector: Selector) -> str:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = torch.linspace(-60, 60, _BATCH * _TOKENS).reshape(_BATCH, _TOKENS).to(dtype).requires_grad_()
        selection = _run(selector, logits, torch.ones(_BATCH, _TOKENS, dtype=torch.bool), True)
        gradient = _gradient(selection, logits)
        if not bool(selection.mask.isfinite().all()) or (gradient is not None and not bool(gradient.isfinite().all())):
            return f"mask or gradient is not finite for {dtype} logits between -60 and 60"
    return ""


def _learns(selector: Selector) -> str:
    logits = _logits()
    selection = _run(selector, logits, _alive(), True)
    gradient = _gradient(selection, logits) if selection.mask.requires_grad else None
    through_mask = gradient is not None and bool((gradient != 0).any())
    if selector.trains_predictor and not through_mask:
        return "no gradient reaches the logits through mask; say trains_predictor = False, or mend the gradient"
    if not selector.trains_predictor and selection.mask.requires_grad:
        return "mask carries a gradient although trains_predictor is False, so the predictors would be frozen"
    if selector.needs_reward and (selection.log_prob is None or not selection.log_prob.requires_grad):
        return "needs_reward is set, but log_prob is missing or carries no gradient"
    return ""


def _deterministic_eval(selector: Selector) -> str:
    logits, alive = _logits(), _alive()
    generator = torch.Generator().manual_seed(3)
    private, public = generator.get_state(), torch.get_rng_state()
    first = selector.eval()(logits, alive, _K, 0.1, generator)
    again = selector(logits, alive, _K, 10.0, generator)
    if not torch.equal(private, generator.get_state()) or not torch.equal(public, torch.get_rng_state()):
        return "noise is drawn in eval: features of the same image would differ"
    if not torch.equal(first.keep, again.keep) or not torch.equal(first.mask, again.mask):
        return "the temperature, or a state, changes the decision in eval"
    return ""


def _count_met(selector: Selector) -> str:
    alive = _alive()
    modes = (True, False) if selector.budget == "k" else (False,)
    for training in modes:
        for k in (1, _K, _TOKENS + 3, torch.tensor(3), torch.tensor([1, 2, 3, 4])):
            kept = _run(selector, _logits(), alive, training, k).keep.sum(dim=1)
            expected = torch.minimum(torch.as_tensor(k).expand(_BATCH), alive.sum(dim=1))
            if not torch.equal(kept, expected):
                return f"k={k} with {alive.sum(dim=1).tolist()} tokens alive keeps {kept.tolist()}, not min(k, alive)"
    return ""


def _all_dead_row(selector: Selector) -> str:
    alive = _alive()
    alive[1] = False
    for training in (True, False):
        logits = _logits()
        selection = _run(selector, logits, alive, training)
        if not bool(selection.mask.isfinite().all()):
            return "an image without tokens gives a mask that is not finite (0 / 0?)"
        if bool(selection.keep[1].any()) or bool((selection.mask[1] != 0).any()):
            return "an image without tokens keeps some"
        gradient = _gradient(selection, logits)
        if gradient is not None and not bool(gradient.isfinite().all()):
            return "an image without tokens gives a gradient that is not finite (0 / 0?)"
    return ""


def _equivariant(selector: Selector) -> str:
    if not selector.needs_scores:
        return ""
    logits, alive = _logits(), _alive()
    order = torch.randperm(_TOKENS, generator=torch.Generator().manual_seed(6))
    for training in (True, False) if not selector.stochastic else (False,):
        plain = _run(selector, logits, alive, training)
        permuted = _run(selector, logits[:, order], alive[:, order], training)
        if not torch.equal(permuted.keep, plain.keep[:, order]):
            return "permuting the tokens does not permute the choice: it depends on their place"
    return ""


def _best_in_eval(selector: Selector) -> str:
    if not selector.needs_scores:
        return ""
    logits, alive = _logits(), _alive()
    if not torch.equal(_run(selector, logits, alive, False).keep, hard_topk(logits, alive, _K)):
        return "eval does not keep the k largest logits, so one checkpoint would not run at any ratio"
    return ""


def _order_agrees(selector: Selector) -> str:
    logits, alive = _logits(), torch.ones(_BATCH, _TOKENS, dtype=torch.bool)
    first = selector.order(logits, _K)[:, :_K].sort(dim=1).values
    if not torch.equal(first, indices_of(_run(selector, logits, alive, False).keep, _K)):
        return "the first k of order() are not those that decide() keeps, so inference would differ from evaluation"
    return ""


def _no_state(selector: Selector) -> str:
    if selector.state_dict():
        return "it has parameters or buffers; schedules and counters belong to the training loop"
    before = {name: repr(value) for name, value in vars(selector).items() if name != "training"}
    _run(selector, _logits(), _alive(), True)
    after = {name: repr(value) for name, value in vars(selector).items() if name != "training"}
    return "" if before == after else "a forward changes its attributes, so evaluations would move training"


_PROMISES: dict[str, Callable[[Selector], str]] = {
    "shapes and ranges": _shapes,
    "dropped tokens stay dropped": _alive_respected,
    "logits of dropped tokens do not matter": _dead_logits_ignored,
    "a hard mask is exactly 0 or 1": _hard_is_exact,
    "finite for logits of any precision": _finite_gradient,
    "learns as it says": _learns,
    "eval is deterministic": _deterministic_eval,
    "k is met": _count_met,
    "an image without tokens": _all_dead_row,
    "no preference for a place": _equivariant,
    "eval keeps the best": _best_in_eval,
    "inference keeps the same": _order_agrees,
    "no state": _no_state,
}
