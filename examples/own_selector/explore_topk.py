"""A selector of your own, as a package that dynavit finds once it is installed.

It shows the class, the entry point in `pyproject.toml` that names it, and `dynavit.check_selector`, which tests what
training and export rely on. Nothing has to be imported: every command and `dynavit.create_model` know its name.

Needs dynavit, installed. From the repository's root:

    pip install --no-deps --no-build-isolation examples/own_selector
    python examples/own_selector/explore_topk.py
    python tools/train.py --config configs/quickstart/learned.yaml model.selector.name=explore_topk name=explore
"""

from __future__ import annotations

import torch
from torch import Tensor

import dynavit
from dynavit.selectors import SelectionRequest
from dynavit.selectors.functional import hard_topk, soft_topk, straight_through


class ExploreTopK(dynavit.Selector):
    """The k largest logits, but while training each token is kept with a small probability whatever its score.

    So a token that the scores would never keep is tried, and its scores can rise. The gradient is that of soft top-k on
    the logits alone: luck gets none.

    Args:
        explore: the probability that a token is tried.

    Raises:
        InputError: it is no probability.
    """

    stochastic = True

    def __init__(self, explore: float = 0.1) -> None:
        super().__init__()
        if not 0 <= explore <= 1:
            raise dynavit.InputError(f"selector 'explore_topk': explore={explore!r}; give a probability in 0..1.")
        self.explore = explore  # options are attributes of the same name, so that models can be saved

    def sample(self, logits: Tensor, request: SelectionRequest) -> dynavit.Selection:
        draws = torch.rand(logits.shape, generator=request.generator, device=logits.device)
        above_all = logits.detach().amax(dim=1, keepdim=True) + draws  # of several tried ones, any comes first
        keep = hard_topk(torch.where(draws < self.explore, above_all, logits), request.alive, request.count)
        soft = soft_topk(logits, request.alive, request.count, request.temperature)
        return dynavit.Selection(keep, straight_through(keep.to(soft.dtype), soft), soft)


def main() -> None:
    """Check the selector, and find it by its name."""
    dynavit.check_selector(ExploreTopK())
    model = dynavit.create_model("test_vit", selector={"name": "explore_topk", "explore": 0.2})
    print(f"{model.selector} keeps its promises and is found by name: {dynavit.list_selectors()['explore_topk']}")


if __name__ == "__main__":
    main()
