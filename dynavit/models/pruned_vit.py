"""A timm Vision Transformer that drops tokens while it runs.

Shapes: B batch, P prefix tokens, N patch tokens, D width, S stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.models.adapters import BackboneAdapter, create_adapter
from dynavit.models.heads import BNNeck
from dynavit.models.hub import HubMixin
from dynavit.models.side import SideEmbedding
from dynavit.models.tokens import GatheredTokens, MaskedTokens, MaskForm
from dynavit.models.trace import Trace
from dynavit.predictors import ScorePredictor
from dynavit.reducers import Reducer
from dynavit.selectors import Selector, num_keep

Execution = Literal["auto", "mask", "gather"]


class PrunedViT(nn.Module, HubMixin):
    """Runs a backbone's own blocks and prunes its patch tokens before some of them.

    Build it with :func:`dynavit.create_model` or :func:`dynavit.prune`. The backbone is held as it
    is; with no stages the output is exactly its own. DynamicViT, Rao et al. 2021,
    https://arxiv.org/abs/2106.02034, with any selector.

    Attributes:
        backbone: the timm model, shared with the caller.
        predictors: one :class:`ScorePredictor` a stage.
        selector, reducer: how tokens are chosen, and what becomes of the others.
        neck: the head of a re-identification model, in place of the backbone's classifier; or None.
        side: adds what is known of camera and view to the tokens; or None.
        stages: blocks (0-based) before which tokens are pruned.
        execution: "mask" hides dropped tokens, "gather" removes them; "auto" masks while training
            and gathers in eval.
        mask_form: "key" or "identity"; see :func:`dynavit.models.tokens.attention_mask`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: Sequence[int],
        keep_ratios: float | Sequence[float],
        selector: Selector,
        reducer: Reducer,
        neck: BNNeck | None = None,
        side: SideEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.adapter: BackboneAdapter = create_adapter(backbone)
        self.stages = _checked_stages(stages, self.adapter.depth)
        self.set_keep_ratio(keep_ratios)
        self.predictors = nn.ModuleList(ScorePredictor(self.embed_dim) for _ in self.stages)
        self.selector = selector
        self.reducer = reducer
        self.neck = neck
        self.side = side
        self._check_head()
        self.model_kwargs: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.execution: Execution = "auto"
        self.mask_form: MaskForm = "key"

    def set_keep_ratio(self, keep_ratio: float | Sequence[float]) -> None:
        """Set which fraction of the original patches remains; any time, no reload.

        Args:
            keep_ratio: one ratio r for r, r^2, r^3 ... over the stages, or one ratio a stage, none
                larger than the one before. Kept to a thousandth.

        Raises:
            InputError: a ratio outside (0, 1], rising ratios, or another number than of stages.
        """
        self.keep_ratios = _checked_ratios(keep_ratio, len(self.stages))

    def forward(
        self,
        images: Tensor,
        cameras: Tensor | None = None,
        views: Tensor | None = None,
        *,
        return_trace: bool = False,
        temperature: float | Tensor = 1.0,
        keep_counts: Sequence[int | Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Classify images ``(B, 3, H, W)``, or embed them where there is a neck.

        Args:
            images: input batch.
            cameras: ``(B,)`` int64, the camera of each image, -1 where unknown; for models with a
                side embedding, and only for those.
            views: likewise; may be left out by a model of one view.
            return_trace: also return what happened to the tokens.
            temperature: passed to the selector; training only.
            keep_counts: tokens to keep at each stage, in place of the keep ratios. Tensors let a
                schedule move them without recompiling; in mask execution ``(B,)`` ones differ by image.
            generator: source of the selector's noise; training only.

        Returns:
            Logits ``(B, num_classes)``; with a neck :class:`~dynavit.models.heads.Embedding` in
            training, and in eval embeddings ``(B, D)`` of length 1. Or that and a Trace.

        Raises:
            InputError: ``keep_counts`` of another length than the stages, or of shape ``(B,)`` in
                gather execution; cameras or views that are needed, or not; one image alone for a neck
                in training.
        """
        x, trace = self._forward(images, cameras, views, temperature, keep_counts, generator)
        output = self._head(x, trace.mask)
        return (output, trace) if return_trace else output

    def unknown_cameras(self, batch: int) -> dict[str, Tensor]:
        """Return what else to call the model with for B images of which no camera is known; mostly nothing."""
        return {} if self.side is None else self.side.unknown(batch)

    def forward_features(
        self,
        images: Tensor,
        return_trace: bool = False,
        cameras: Tensor | None = None,
        views: Tensor | None = None,
    ) -> Any:
        """Return the tokens after the last norm, ``(B, P + n, D)``, and with them the trace if asked.

        Where dropped tokens are only masked, pooling has to know: pass ``trace.mask`` on to
        :meth:`forward_head`.
        """
        x, trace = self._forward(images, cameras, views, 1.0, None, None)
        return (x, trace) if return_trace else x

    def forward_head(self, x: Tensor, pre_logits: bool = False, mask: Tensor | None = None) -> Any:
        """Pool tokens and classify or embed them, as timm's method does.

        Args:
            x: what :meth:`forward_features` returned.
            pre_logits: stop before the classifier or the neck.
            mask: ``trace.mask`` of the same forward; needed in mask execution.

        Raises:
            InputError: the tokens were masked, the model pools over them, and no mask is given.
        """
        # as in _forward: in eval a stage at ratio 1.0 masks nothing, and then there is no mask
        prunes = bool(self.stages) if self.training else any(ratio < 1 for ratio in self.keep_ratios)
        unweighted = mask is None and self._executes() == "mask" and prunes
        if unweighted and self.backbone.global_pool not in ("token", ""):
            raise InputError(
                "forward_head: dropped tokens are only masked here (training mode, or "
                "execution='mask'), so pooling needs their mask: use forward_features(images, "
                "return_trace=True) and forward_head(x, mask=trace.mask)."
            )
        return self._head(x, mask, pre_logits)

    def _head(self, x: Tensor, mask: Tensor | None, pre_logits: bool = False) -> Any:
        if self.neck is None or pre_logits:
            return self.adapter.head(x, mask, self.training, pre_logits)
        return self.neck(self.adapter.head(x, mask, self.training, pre_logits=True))

    def _forward(
        self,
        images: Tensor,
        cameras: Tensor | None,
        views: Tensor | None,
        temperature: float | Tensor,
        keep_counts: Sequence[int | Tensor] | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Trace]:
        gathers = self._executes() == "gather"
        trace = Trace()
        kind = GatheredTokens if gathers else MaskedTokens
        x, context = self.adapter.embed(images)
        if self.side is not None:
            x = x + self.side(cameras, views, x.shape[0]).to(x.dtype)
        elif cameras is not None or views is not None:
            raise InputError(
                "this model has no side embedding: call it without cameras and views, or create it with "
                "side={'cameras': ...}."
            )
        tokens = kind(x, context, self.adapter, training=self.training, form=self.mask_form)
        always = self.training or keep_counts is not None
        if keep_counts is None:
            keep_counts = [num_keep(tokens.num_patches, ratio) for ratio in self.keep_ratios]
        elif len(keep_counts) != len(self.stages):
            raise InputError(f"{len(keep_counts)} keep_counts for {len(self.stages)} stages.")

        for number in range(self.adapter.depth):
            if number in self.stages:
                stage = self.stages.index(number)
                k = keep_counts[stage]
                if always or self.keep_ratios[stage] < 1:
                    self._prune(tokens, stage, k, temperature, generator, trace)
                trace.masks.append(tokens.kept)
            tokens.x = self.adapter.block(number, tokens.x, tokens.context, tokens.attention_mask())

        x = self.adapter.norm(tokens.x)
        trace.features = x[:, self.adapter.num_prefix_tokens :]
        trace.positions, trace.mask = tokens.positions, tokens.mask
        return x, trace

    def _prune(
        self,
        tokens: MaskedTokens,
        stage: int,
        k: int | Tensor,
        temperature: float | Tensor,
        generator: torch.Generator | None,
        trace: Trace,
    ) -> None:
        if self.selector.needs_scores:
            logits = self.predictors[stage](tokens.patches, tokens.mask)
        else:
            logits = tokens.patches.new_zeros(tokens.positions.shape)
        selector = self.selector.at(stage, tokens.positions)
        selection = selector(logits, tokens.alive, k, temperature, generator)
        if isinstance(tokens, GatheredTokens):
            if isinstance(k, Tensor) and k.numel() != 1:
                raise InputError("keep_counts that differ by image leave no rectangular batch: use execution='mask'.")
            tokens.remove(selection, int(k), self.reducer)
        else:
            tokens.apply(selection, soft=self.training and self.selector.soft)
        assert tokens.expected is not None
        assert tokens.probs is not None
        trace.expected.append(tokens.expected)
        present = selection.mask if tokens.mask is None else tokens.mask
        trace.decided.append(present.sum(dim=1) / tokens.num_patches)
        trace.probs.append(tokens.probs)
        trace.scores.append(logits)
        if selection.log_prob is not None:
            trace.log_prob = selection.log_prob if trace.log_prob is None else trace.log_prob + selection.log_prob
        for name, loss in selection.aux.items():
            trace.aux[name] = trace.aux[name] + loss if name in trace.aux else loss

    def _executes(self) -> Literal["mask", "gather"]:
        if self.execution == "auto":
            return "mask" if self.training else "gather"
        fixed = self.selector.budget == "k" and not self.selector.soft
        if self.execution == "gather" and self.training and not fixed:
            raise InputError(
                f"execution='gather' in training needs a selector that removes a fixed number of "
                f"tokens; {type(self.selector).__name__} does not. Use execution='mask' or 'auto'."
            )
        return self.execution

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

    # timm's conventions

    @property
    def num_classes(self) -> int:
        """Number of classes of the head, or of training identities of the neck."""
        return int(self.backbone.num_classes) if self.neck is None else self.neck.num_identities

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
        """Replace the classifier, as timm's method does; of a neck, that of its identities."""
        if self.neck is None:
            self.backbone.reset_classifier(num_classes, global_pool)
            return
        self.neck.reset(num_classes)
        if global_pool is not None:
            self.backbone.reset_classifier(0, global_pool)
            self._check_head()

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the image or patch size, as timm's method does."""
        self.backbone.set_input_size(*args, **kwargs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in backward instead of storing their activations."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters to leave out of weight decay, the predictors' included."""
        backbone = {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
        side = {"side.table"} if self.side is not None else set()  # as position embeddings
        return backbone | side | {f"predictors.{name}" for name, _ in self.predictors.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's layer groups for layer-wise learning rates, names prefixed by backbone."""
        groups = self.backbone.group_matcher(coarse=coarse)
        return {name: _prefixed(pattern) for name, pattern in groups.items()}


def _prefixed(pattern: Any) -> Any:
    """Make timm's regular expressions match below ``backbone.``."""
    if isinstance(pattern, str):
        return rf"^backbone\.(?:{pattern.replace('^', '')})"
    return [(_prefixed(expression), order) for expression, order in pattern]


def _checked_stages(stages: Sequence[int], depth: int) -> tuple[int, ...]:
    try:
        stages = tuple(index(stage) for stage in stages)
    except TypeError:
        raise InputError(f"stages={stages!r}: give a list of block numbers, such as (3, 6, 9).") from None
    if list(stages) != sorted(set(stages)) or any(not 0 <= stage < depth for stage in stages):
        raise InputError(
            f"stages={list(stages)}: stages are block numbers in rising order, each from 0 to "
            f"{depth - 1} for this backbone of {depth} blocks."
        )
    return stages


def _checked_ratios(keep_ratio: float | Sequence[float], num_stages: int) -> tuple[float, ...]:
    if isinstance(keep_ratio, Sequence):
        ratios = tuple(float(ratio) for ratio in keep_ratio)
        if len(ratios) != num_stages:
            raise InputError(
                f"keep_ratios={list(ratios)}: {len(ratios)} ratios for {num_stages} stages; give one "
                f"ratio a stage, or a single number."
            )
    else:
        ratios = tuple(float(keep_ratio) ** (stage + 1) for stage in range(num_stages))
        if not 0 < keep_ratio <= 1:
            raise InputError(f"keep_ratio={keep_ratio}: a keep ratio lies in (0, 1].")
    if any(not 0 < ratio <= 1 for ratio in ratios) or list(ratios) != sorted(ratios, reverse=True):
        raise InputError(
            f"keep_ratios={list(ratios)}: fractions of the original patches, each in (0, 1] and none "
            f"larger than the one before."
        )
    return tuple(max(round(ratio, 3), 0.001) for ratio in ratios)
