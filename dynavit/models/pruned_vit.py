"""A timm Vision Transformer that drops tokens while it runs.

Shapes: B batch, P prefix tokens, N patch tokens, D width, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynavit.adapters import BackboneAdapter, create_adapter
from dynavit.models import conventions, features, hub
from dynavit.models.counts import stage_counts
from dynavit.models.execution import (
    check_execution,
    check_scorers,
    gathers_in_training,
    learns_by_mask,
)
from dynavit.models.gathered import GatheredTokens
from dynavit.models.guides import checked_absent, find_guide, find_present
from dynavit.models.heads import BNNeck
from dynavit.models.intermediates import forward_intermediates
from dynavit.models.masked import MaskedTokens
from dynavit.models.merging import MergeStep
from dynavit.models.one_of import OneOf
from dynavit.models.places import Places
from dynavit.models.pruning import Pruning, build_scorer
from dynavit.models.ratios import check_counts, checked_ratios, checked_rule, checked_stages, checked_thresholds
from dynavit.models.rebuild import Origin
from dynavit.models.side import SideEmbedding, add_side
from dynavit.models.spectra import SpectraNeck, as_images, each_of
from dynavit.models.steps import ForwardRequest, SelectStep
from dynavit.models.tokens import Tokens
from dynavit.models.trace import StageTrace, Trace
from dynavit.models.training_probes import DEFAULT_PROBES, checked_probes
from dynavit.reducers import Drop, Merge

_DROP = Drop()


class PrunedViT(nn.Module):
    """Runs a backbone's own blocks and prunes its patch tokens at some of them.

    Build it with :func:`dynavit.create_model` or :func:`dynavit.prune`. The backbone is held as it
    is; with no stages the output is exactly its own. At each stage a scorer gives every token a logit, a
    selector turns logits into a decision, and a reducer says what becomes of the tokens not kept.
    DynamicViT (Rao et al. 2021, https://arxiv.org/abs/2106.02034), EViT (Liang et al. 2022,
    https://arxiv.org/abs/2202.07800) and ToMe (Bolya et al. 2023, https://arxiv.org/abs/2210.09461) are
    special cases.

    Attributes:
        backbone: the timm model, shared with the caller.
        scorers: one :class:`~dynavit.scorers.Scorer` a stage; none where tokens merge.
        selector, reducer: how tokens are chosen, and what becomes of the others; or how they merge.
        neck: the head of a re-identification model, in place of the backbone's classifier; or None.
        side: adds what is known of camera and view to the tokens; or None.
        stages: blocks (0-based) at which tokens are pruned.
        placement: "before" the block, or "inside" it, between its attention and its MLP.
        count_rule: what keep ratios are ratios of; see :data:`dynavit.models.counts.CountRule`.
        thresholds: one logit a stage above which tokens are kept in eval, whatever their number; or None.
        execution: "mask" hides dropped tokens, "gather" removes them; "auto" gathers, but masks while training where
            selectors leave different numbers of tokens in each image, or all of them.
        probes: dropped tokens of each image and stage that stay hidden in gather execution while training, so that
            their masks receive a gradient; see :mod:`dynavit.models.training_probes`.
        mask_form: "key" or "identity"; see :func:`dynavit.models.attention_bias.attention_mask`.
        architecture: timm name from which the backbone can be rebuilt; None if unknown.
        model_kwargs: what timm needs beside it.
        scorer_config: what :func:`dynavit.create_model` was asked for, for models that have no scorers at present.
        metadata: plain data saved along: class names, preprocessing, whatever else serves users.
        absent: numbers of spectra that are taken for absent in every sample; not saved.
    """

    execution: Any = OneOf("auto", "mask", "gather")
    mask_form: Any = OneOf("key", "identity")
    placement: Any = OneOf("before", "inside")

    def __init__(
        self,
        backbone: nn.Module,
        pruning: Pruning,
        neck: BNNeck | None = None,
        side: SideEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.adapter: BackboneAdapter = create_adapter(backbone)
        self.stages = checked_stages(pruning.stages_of(self.adapter.depth), self.adapter.depth)
        self.placement = pruning.placement
        self.count_rule = checked_rule(pruning.count_rule)
        self.thresholds: tuple[float, ...] | None = None
        self.set_keep_ratio(pruning.ratios)
        self.selector = pruning.create_selector()
        self.reducer = pruning.create_reducer(self.embed_dim, self.selector)
        scorer = pruning.scorer_for(self.selector)
        scored = () if isinstance(self.reducer, Merge) else self.stages
        self.scorers = nn.ModuleList(build_scorer(scorer, self.embed_dim) for _ in scored)
        self.neck = neck
        self.side = side
        conventions.check_neck(self)
        check_scorers(self)
        self.scorer_config = {"name": scorer} if isinstance(scorer, str) else dict(scorer)
        self.architecture: str | None = None
        self.model_kwargs: dict[str, Any] = {}
        self.origin: tuple[Any, Origin] | None = None
        self.metadata: dict[str, Any] = {}
        self.absent = ()
        self.execution = "auto"
        self.mask_form = "key"
        self.probes = DEFAULT_PROBES

    def set_keep_ratio(self, keep_ratio: float | Sequence[float]) -> None:
        """Set which fraction of the patches remains; any time, no reload. Thresholds are given up.

        Args:
            keep_ratio: one ratio r, or one ratio a stage, kept to a thousandth. With the count rule "original"
                they are shares of the original patches, none larger than the one before, and r means r, r^2,
                r^3 ... over the stages; with "linear" likewise, but r is what the last stage leaves; with
                "current" they are shares of the tokens that a stage finds.

        Raises:
            InputError: a ratio outside (0, 1], rising ratios, or another number than of stages.
        """
        self.keep_ratios = checked_ratios(keep_ratio, len(self.stages), self.count_rule)
        self.thresholds = None

    @property
    def probes(self) -> int:
        """Dropped tokens of each image and stage that stay hidden in gather execution while training."""
        return self._probes

    @probes.setter
    def probes(self, probes: int) -> None:
        self._probes = checked_probes(probes)

    @property
    def absent(self) -> tuple[int, ...]:
        """Numbers of spectra that are taken for absent in every sample."""
        return self._absent

    @absent.setter
    def absent(self, absent: Sequence[int]) -> None:
        self._absent = checked_absent(absent, self.num_spectra) if absent != () else ()

    def at_ratio(self, keep_ratio: float | Sequence[float]) -> PrunedViT:
        """Return a copy of the model at another keep ratio; this one keeps its own.

        Attributes of the copy, such as ``neck``, ``metadata`` or ``training``, are its own. The parts behind them are
        shared: their weights, whether they train, and what ``reset_classifier`` changes inside the backbone.
        """
        variant = copy(self)
        variant.set_keep_ratio(keep_ratio)
        return variant

    def __copy__(self) -> PrunedViT:
        # torch keeps submodules, parameters and buffers in dicts, which a plain copy would share
        state = self.__getstate__()
        variant = type(self).__new__(type(self))
        variant.__setstate__({name: copy(part) if isinstance(part, dict) else part for name, part in state.items()})
        variant.metadata = deepcopy(self.metadata)
        return variant

    def set_thresholds(self, thresholds: Sequence[float] | None) -> None:
        """In eval keep the tokens whose logit is above a threshold, however many, at least one an image.

        :func:`dynavit.calibrate` finds thresholds that keep a given share on average. None goes back to ratios.
        The number of tokens then depends on the data, so such a model cannot be exported.

        Args:
            thresholds: one a stage.

        Raises:
            InputError: another number than of stages, no number, or a model that chooses without logits.
        """
        self.thresholds = None if thresholds is None else checked_thresholds(thresholds, self)

    def forward(
        self,
        images: Any,
        cameras: Tensor | None = None,
        views: Tensor | None = None,
        guide: Tensor | None = None,
        present: Tensor | None = None,
        *,
        return_trace: bool = False,
        temperature: float | Tensor = 1.0,
        keep_counts: Sequence[int | Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Classify images ``(B, 3, H, W)``, or embed them where there is a neck.

        Args:
            images: input batch; for NaFlexViT also a mapping with "patches", "patch_coord" and "patch_valid". Of a
                model of M spectra samples ``(B, M, 3, H, W)``, which it takes for ``B M`` images everywhere but here.
            cameras: ``(B,)`` int64, the camera of each image, -1 where unknown; for models with a
                side embedding, and only for those.
            views: likewise; may be left out by a model of one view.
            guide: ``(B, G, D)``, features that ``guided`` scorers compare the tokens with, such as embeddings of texts
                or of other pictures of the same thing; for models with such scorers, and only for those.
            present: ``(B, M)`` bool, which spectra of each sample there are; for models of several, in eval. The
                pixels of others do not matter.
            return_trace: also return what happened to the tokens.
            temperature: passed to the selector; training only.
            keep_counts: tokens to keep at each stage, in place of the keep ratios. Tensors let a
                schedule move them without recompiling (in mask execution only); ``(B,)`` ones differ by image (not
                where tokens are merged). Thresholds give way to them.
            generator: source of the selector's noise and of the draw of probes; training only.

        Returns:
            Logits ``(B, num_classes)``; with a neck :class:`~dynavit.models.heads.Embedding` in training, and in eval
            embeddings ``(B, D)`` of length 1; of M spectra :class:`~dynavit.models.spectra.SpectraEmbedding`, and
            ``(B, M D)``, all zeros for a sample of which nothing is present. Or that and a Trace.

        Raises:
            InputError: no batch of images; ``keep_counts`` of another length than the stages; cameras, views, a
                guide or spectra that are needed, or not; one image alone for a neck in training; a reducer that this
                execution or selector cannot be used with.
        """
        present = find_present(self, images, present)
        tokens = self.embed(images, cameras, views, present, follow=return_trace)
        if keep_counts is not None and self.num_spectra > 1:
            keep_counts = [each_of(count, images, self.num_spectra) for count in keep_counts]
        request = self.request(tokens, keep_counts, guide, present, temperature=temperature, generator=generator)
        self.run(tokens, request)
        x = self.adapter.norm(tokens.x)
        output = self.pool(x, tokens.weight, present=present)
        return (output, self.record(x, tokens)) if return_trace else output

    def unknown_cameras(self, batch: int) -> dict[str, Tensor]:
        """Return what else to call the model with for B images of which no camera is known; mostly nothing."""
        return {} if self.side is None else self.side.unknown(batch)

    def as_samples(self, images: Tensor) -> Tensor:
        """Return images ``(B, 3, H, W)`` as what the model takes: of several spectra, each image as all of them."""
        count = self.num_spectra
        return images if count == 1 else images.unsqueeze(1).expand(-1, count, -1, -1, -1)

    def pool(self, x: Tensor, weight: Tensor | None, pre_logits: bool = False, present: Tensor | None = None) -> Any:
        """Pool normalised tokens by their weight, and classify or embed them."""
        neck = None if pre_logits else self.neck
        pooled = self.adapter.head(x, weight, self.training, pre_logits or neck is not None)
        if isinstance(neck, SpectraNeck):
            return neck(pooled, present)
        return pooled if neck is None else neck(pooled)

    def run(self, tokens: Tokens, request: ForwardRequest, after: Callable[[int, Tokens], None] | None = None) -> None:
        """Run the blocks, and shorten the tokens at the stages.

        Args:
            tokens: embedded; changed.
            request: what is asked of the stages.
            after: called with the number and the tokens after each block.
        """
        steps = self.steps()
        for number in range(self.adapter.depth):
            step, choice = steps.get(number), None
            if step is None or step.idle(request):
                tokens.block(number)
            elif self.placement == "inside":
                tokens.attention(number)
                choice = step(tokens, request)
                tokens.mlp(number)
            else:
                choice = step(tokens, request)
                tokens.block(number)
            if step is not None and tokens.places is not None:
                tokens.places.stages.append(StageTrace(tokens.places.kept, tokens.candidates.sum(dim=1), choice))
            if after is not None:
                after(number, tokens)

    def steps(self) -> dict[int, SelectStep | MergeStep]:
        """Return what happens at each stage, by the block that it is at."""
        steps: dict[int, SelectStep | MergeStep] = {}
        selector, reducer = self.selector, self.reducer
        scorers: Any = list(self.scorers)
        for stage, (block, ratio) in enumerate(zip(self.stages, self.keep_ratios, strict=True)):
            if isinstance(reducer, Merge):
                steps[block] = MergeStep(stage, block, ratio, reducer)
                continue
            early = reducer.last_only and stage + 1 < len(self.stages)
            steps[block] = SelectStep(stage, block, ratio, scorers[stage], selector, _DROP if early else reducer)
        return steps

    def request(
        self,
        tokens: Tokens,
        keep_counts: Sequence[int | Tensor] | None = None,
        guide: Tensor | None = None,
        present: Tensor | None = None,
        **sampling: Any,
    ) -> ForwardRequest:
        """Return what a forward asks of its stages; ``sampling`` is the temperature and the generator."""
        if keep_counts is not None:
            check_counts(keep_counts, len(self.stages))
        return ForwardRequest(
            counts=self.stage_counts(tokens.num_patches) if keep_counts is None else keep_counts,
            training=self.training,
            skips_full=not self.training and keep_counts is None and self.thresholds is None,
            thresholds=None if self.training or keep_counts is not None else self.thresholds,
            probes=self.probes if self.training and learns_by_mask(self) else None,
            guide=find_guide(self, guide, present),
            **sampling,
        )

    def record(self, x: Tensor, tokens: Tokens) -> Trace:
        """Return what happened to tokens that were followed, with their features ``x`` after the last norm."""
        assert tokens.places is not None
        features = x[:, self.adapter.num_prefix_tokens :]
        return Trace(
            tokens.execution, features, tokens.positions, tokens.places.source, tokens.weight, tokens.places.stages
        )

    def embed(
        self,
        images: Any,
        cameras: Tensor | None = None,
        views: Tensor | None = None,
        present: Tensor | None = None,
        *,
        follow: bool,
    ) -> Tokens:
        """Turn images into the tokens of this forward's execution; ``follow`` every patch, for a trace."""
        if self.num_spectra > 1:
            cameras, views = (each_of(numbers, images, self.num_spectra) for numbers in (cameras, views))
            images = as_images(images, self.num_spectra, present)
        x, context = self.adapter.embed(images)
        if self.side is not None or cameras is not None or views is not None:
            x = add_side(self.side, x, cameras, views)
        kind = GatheredTokens if self.gathers else MaskedTokens
        tokens = kind(x, context, self.adapter, training=self.training, form=self.mask_form)
        if self.training or not self.gathers:
            check_execution(self)
        tokens.places = Places(tokens.candidates) if follow else None
        return tokens

    def stage_counts(self, num_patches: Any, keep_ratios: Sequence[float] | None = None) -> Any:
        """Return how many of the tokens that it finds each stage keeps; those that it makes come on top.

        Args:
            num_patches: N, or ``(B,)`` int64.
            keep_ratios: in place of the model's own.
        """
        ratios = self.keep_ratios if keep_ratios is None else keep_ratios
        makes = 0 if self.reducer.last_only else self.reducer.makes
        return stage_counts(num_patches, ratios, self.count_rule, makes)

    @property
    def num_spectra(self) -> int:
        """M, images that make one sample; 1 but for models of several spectra."""
        return self.neck.num_spectra if isinstance(self.neck, SpectraNeck) else 1

    @property
    def gathers(self) -> bool:
        """Whether a forward removes dropped tokens, as ``execution`` says; otherwise it masks them."""
        return gathers_in_training(self) if self.training else self.execution != "mask"

    @property
    def only_gathers(self) -> bool:
        """Whether tokens can be removed but not masked."""
        return not self.reducer.masks

    # what users of timm and of the Hugging Face Hub expect; each function documents itself
    num_classes = property(conventions.num_classes)
    num_features = property(conventions.num_features)
    num_prefix_tokens = property(conventions.num_prefix_tokens)
    embed_dim = property(conventions.embed_dim)
    pretrained_cfg = default_cfg = property(conventions.pretrained_cfg)
    get_classifier = conventions.get_classifier
    reset_classifier = conventions.reset_classifier
    set_input_size = conventions.set_input_size
    set_grad_checkpointing = conventions.set_grad_checkpointing
    no_weight_decay = conventions.no_weight_decay
    group_matcher = conventions.group_matcher
    forward_features = features.forward_features
    forward_head = features.forward_head
    forward_intermediates = forward_intermediates
    save_pretrained = hub.save_pretrained
    push_to_hub = hub.push_to_hub

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> PrunedViT:
        """Load what ``save_pretrained`` wrote; see :func:`dynavit.load`."""
        from dynavit.models.loading import load  # which builds this class

        return load(pretrained_model_name_or_path, **kwargs)
