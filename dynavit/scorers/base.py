"""What a scorer is: tokens in, one logit a token out; and scorers by name.

Shapes: B batch, P prefix tokens, n patch-like tokens present (patches and tokens that a reducer made), L = P + n, D
width, H heads, d head width.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from dynavit.errors import InputError
from dynavit.parts import Registry, named_config

_SCORERS: Registry[Scorer] = Registry("scorer", supplied=("dim",))
_S = TypeVar("_S", bound="type[Scorer]")


class BlockAttention(Protocol):
    """The attention of one block, computed where it is asked for; hidden tokens get no weight."""

    num_prefix_tokens: int
    has_class_token: bool

    def class_attention(self) -> Tensor:
        """Return ``(B, H, L)``, the attention of the class token: fp32, rows sum to 1."""

    def mean_attention(self, weight: Tensor | None = None) -> Tensor:
        """Return ``(B, H, L)``, the attention of the patches' mean by their weight ``(B, n)``: fp32, rows sum to 1."""

    def latent_attention(self) -> Tensor:
        """Return ``(B, H, L)``, the attention of a pooling head's latent, H of that head: fp32, rows sum to 1."""

    def attention(self) -> Tensor:
        """Return ``(B, H, L, L)``, the attention of every token: fp32, rows sum to 1."""

    def keys(self) -> Tensor:
        """Return ``(B, H, L, d)``, after QK-norm and before any rotation."""

    def mean_keys(self) -> Tensor:
        """Return ``(B, L, d)``, the mean of the keys over the heads."""

    def values(self) -> Tensor:
        """Return ``(B, H, L, d)``."""


@dataclass(frozen=True)
class StageView:
    """Where a scorer is asked.

    Attributes:
        stage: 0-based number of the stage.
        positions: ``(B, n)`` original index of each patch, -1 for made tokens.
        attention: of the block of this stage, at its input; None unless the scorer needs it.
        summary: ``(B, D)``, the class token as the stage finds it, or without one the mean of the patches by their
            weight; None unless the scorer reads it.
        guide: ``(B, G, D)``, features that the caller of the model compares tokens with; None: none.
        guide_present: ``(B, G)`` bool, which of them there are; None: all.
    """

    stage: int
    positions: Tensor
    attention: BlockAttention | None = None
    summary: Tensor | None = None
    guide: Tensor | None = None
    guide_present: Tensor | None = None


class Scorer(nn.Module):
    """Base class: gives every token a raw logit, larger for what should be kept. One instance a stage.

    Attributes:
        name: what :func:`create_scorer` knows it by.
        learned: has parameters that the task trains through the selector.
        needs_attention: reads ``view.attention``.
        needs_class_token: reads the attention of a class token.
        needs_latent: reads the attention of a pooling head's latent.
        reads_summary: reads ``view.summary``.
        guides: G, features of an image that it reads from ``view.guide``.
    """

    name: str
    learned: bool = False
    needs_attention: bool = False
    needs_class_token: bool = False
    needs_latent: bool = False
    reads_summary: bool = False
    guides: int = 0

    def reads_like(self, part: Scorer) -> None:
        """Read what a scorer inside this one reads."""
        self.needs_attention, self.needs_class_token = part.needs_attention, part.needs_class_token
        self.needs_latent, self.reads_summary, self.guides = part.needs_latent, part.reads_summary, part.guides

    @abstractmethod
    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        """Return logits ``(B, n)``: fp32 (fp64 of an fp64 model), finite.

        The logits of tokens still there must not depend on hidden ones, whose own may be anything.

        Args:
            tokens: patch tokens ``(B, n, D)`` as the stage finds them; inside a block, after its attention.
            mask: ``(B, n)`` in [0, 1], how much of each token is still there; None means all.
            view: what else is known of the place; its attention is that of the block, on what entered it.
        """

    @abstractmethod
    def macs(self, n: int, num_prefix: int, num_heads: int, dim: int, folds: bool = True) -> int:
        """Return the multiply-accumulates of one image's matrix products, those for ``view.attention`` included.

        Args:
            n: patch-like tokens present.
            num_prefix: P.
            num_heads: H, with H d = D; of the pooling head where its latent is read.
            dim: D.
            folds: the block has neither QK-norm nor rotary embeddings, so that the class token's attention can be had
                without keys.
        """


def register_scorer(cls: _S) -> _S:
    """Make a :class:`Scorer` class available under its ``name``.

    Its constructor may take ``dim``, the token width; its other parameters are options, kept in attributes of the
    same name.

    Raises:
        InputError: the class is no Scorer, or the name is taken.
    """
    if not (inspect.isclass(cls) and issubclass(cls, Scorer)):
        raise InputError(f"{cls!r} is not a subclass of dynavit.scorers.Scorer.")
    taken = _SCORERS.classes.get(cls.name)
    if taken not in (None, cls):
        raise InputError(f"scorer {cls.name!r} is already registered by {taken.__module__}; choose another name.")
    _SCORERS.classes[cls.name] = cls
    return cls


def create_scorer(name: str, dim: int, **options: Any) -> Scorer:
    """Build a scorer by name, for tokens of width ``dim``.

    Raises:
        InputError: unknown name or option; the message lists what exists.

    Example:
        >>> create_scorer("mlp", 192).learned, create_scorer("class_attention", 192).learned
        (True, False)
    """
    return _SCORERS.create(name, options, dim=dim)


def create_inner(called: str, part: str | Mapping[str, Any], dim: int) -> Scorer:
    """Build the scorer that another one holds.

    Raises:
        InputError: ``part`` is neither a name nor a mapping with one, or says what ``dim`` is; ``called`` names it.
    """
    config = named_config(part, called)
    if "dim" in config:
        raise InputError(f"{called}: the width of the tokens is the model's; leave out dim.")
    return create_scorer(dim=dim, **config)


def list_scorers() -> dict[str, str]:
    """Return every scorer's name with the first line of its documentation."""
    return _SCORERS.summaries()


def scorer_config(scorer: Scorer) -> dict[str, Any]:
    """Return ``{"name": ..., option: value, ...}`` from which :func:`create_scorer` rebuilds it.

    Options are read from the attributes named like the constructor's parameters.

    Raises:
        InputError: the class is not registered, or an option is not kept or not plain data.
    """
    if _SCORERS.classes.get(getattr(scorer, "name", "")) is not type(scorer):
        raise InputError(
            f"{type(scorer).__name__} is not a registered scorer, so a saved model could not be rebuilt; decorate "
            f"the class with @dynavit.scorers.register_scorer."
        )
    return _SCORERS.config(scorer.name, scorer)
