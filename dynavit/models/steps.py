"""What happens at a stage that selects: tokens are chosen by their scores.

Shapes: B batch, n tokens present beside the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynavit.adapters import BackboneAdapter
from dynavit.adapters.attention import normalises_keys
from dynavit.models.gathered import GatheredTokens
from dynavit.models.guides import Guide
from dynavit.models.tokens import Tokens
from dynavit.models.trace import StageChoice
from dynavit.models.training_probes import Probes
from dynavit.reducers import Reducer
from dynavit.scorers import Scorer, StageView
from dynavit.selectors import Selection, Selector
from dynavit.selectors.functional import above


@dataclass(frozen=True)
class ForwardRequest:
    """What a forward asks of its stages.

    Attributes:
        counts: tokens to keep at each stage: ints, or tensors of shape ``()`` or ``(B,)``.
        training: whether the model trains.
        skips_full: leave out stages at keep ratio 1.0.
        thresholds: one logit a stage above which tokens are kept, in place of counts; or None.
        temperature, generator: for the selector; probes are drawn by the generator, too.
        probes: dropped tokens that each stage keeps hidden in gather execution, so that their masks receive a gradient;
            None: masks carry none.
        guide: what guided scorers compare tokens with; None: nothing.
    """

    counts: Sequence[int | Tensor]
    training: bool
    skips_full: bool
    thresholds: Sequence[float] | None = None
    temperature: float | Tensor = 1.0
    generator: torch.Generator | None = None
    probes: int | None = None
    guide: Guide | None = None


@dataclass(frozen=True, eq=False)  # else torch.compile, until torch 2.12, hashes one whose fields are not there yet
class Step:
    """What the two kinds of stage have in common.

    Attributes:
        stage: 0-based number of the stage.
        block: the block at which it is.
        keep_ratio: of this stage.
    """

    stage: int
    block: int
    keep_ratio: float

    def idle(self, request: ForwardRequest) -> bool:
        """Tell whether the stage leaves the tokens exactly as they are."""
        return request.skips_full and self.keep_ratio == 1


@dataclass(frozen=True, eq=False)
class SelectStep(Step):
    """Scores the tokens, keeps the chosen ones, and leaves the others to a reducer.

    Attributes:
        scorer: gives each token its logit.
        selector: turns logits into a decision.
        reducer: says what becomes of the tokens not kept.
    """

    scorer: Scorer
    selector: Selector
    reducer: Reducer

    def __call__(self, tokens: Tokens, request: ForwardRequest) -> StageChoice | None:
        """Keep as many tokens as the stage should; those that its reducer makes come on top.

        Returns:
            What was chosen, if patches are followed.

        """
        logits, k = self.score(tokens, request), request.counts[self.stage]
        selector = self.selector.at(self.stage, tokens.positions)
        common = self._common_count(tokens, request, k) if isinstance(tokens, GatheredTokens) else None
        if common is not None and tokens.places is None and not request.training:
            assert isinstance(tokens, GatheredTokens)
            tokens.shorten(selector.order(logits, common), common, logits, self.reducer)
            return None
        alive, before, total = tokens.candidates, tokens.mask, tokens.num_patches
        positions = tokens.positions
        if request.thresholds is None:
            selection = selector(logits, alive, k, request.temperature, request.generator, request.training)
        else:
            keep = above(logits, alive, request.thresholds[self.stage])
            selection = Selection(keep, keep.float(), keep.float())
        soft = request.training and selector.soft
        tokens.select(selection, logits, self.reducer, common, soft, self._probes(request))
        if tokens.places is None:
            return None
        probs, mask = selection.probs, selection.mask
        if soft:
            tokens.probs = probs = probs if tokens.probs is None else tokens.probs * probs
        if before is not None:
            mask = before * mask
        return StageChoice.of(selection, logits, alive, probs, mask, positions, total)

    def macs(self, n: int, k: int, adapter: BackboneAdapter) -> tuple[int, int]:
        """Return the multiply-accumulates, for one image, of choosing k of n tokens and of reducing the others."""
        attention, dim = adapter.backbone.blocks[self.block].attn, int(adapter.backbone.embed_dim)
        scoring = 0
        if self.selector.needs_scores:
            heads = (adapter.backbone.attn_pool if self.scorer.needs_latent else attention).num_heads
            folds = not normalises_keys(attention) and getattr(adapter.backbone, "rope", None) is None
            scoring = self.scorer.macs(n, adapter.num_prefix_tokens, heads, dim, folds)
        return scoring, self.reducer.macs(k, n - k, dim)

    def leaves(self, n: int, k: int) -> int:
        """Return how many tokens there are after k of n were kept, those made included."""
        return self.reducer.leaves(k) if k < n or not self.reducer.keeps_places else k

    def score(self, tokens: Tokens, request: ForwardRequest) -> Tensor:
        """Return the logit of each token, ``(B, n)``."""
        if not self.selector.needs_scores:
            return tokens.patches.new_zeros(tokens.positions.shape)
        attention = tokens.view(self.block) if self.scorer.needs_attention else None
        guide, present = (None, None) if request.guide is None else request.guide.at(tokens)
        summary = tokens.summary if self.scorer.reads_summary else None
        view = StageView(self.stage, tokens.positions, attention, summary, guide, present)
        logits: Tensor = self.scorer(tokens.patches, tokens.mask, view)
        return logits

    def _common_count(self, tokens: GatheredTokens, request: ForwardRequest, k: int | Tensor) -> int | None:
        """Return the number of tokens that all images keep; None where images differ."""
        differ = isinstance(k, Tensor) and k.numel() != 1
        if request.training:
            differ = differ or not self.selector.fixed_k
        else:
            differ = differ or request.thresholds is not None or tokens.mask is not None
        if differ:
            return None
        return int(k) if isinstance(k, Tensor) else k

    def _probes(self, request: ForwardRequest) -> Probes | None:
        if request.probes is None:
            return None
        # where the kept tokens are mixed, nothing can stay beside them
        return Probes(request.probes if self.reducer.keeps_places else 0, request.generator)
