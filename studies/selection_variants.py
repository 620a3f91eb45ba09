"""What the selection study compares: the library's selectors, controls, and formulas known to be bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from dynavit.functional import masked_mean
from dynavit.selectors import Selection, SelectionRequest, Selector, create_selector
from studies import known_bad
from studies.layers import Pool

Kind = Literal["library", "control", "known bad"]

LEFT_OUT = {"fixed": "replays decisions made elsewhere"}
"""Registered selectors without a row, and why."""


@dataclass(frozen=True)
class SelectionVariant:
    """One row of the study.

    Attributes:
        name: as on the command line.
        kind: a registered selector, a control, or a known-bad formula.
        build: makes the selector.
        registered: name under which the selector is registered, if it is.
        options: what it was created with, for the table.
        temperature: at the first step.
        temperature_end: at the last step, reached exponentially; None keeps it.
        pool: mean of the tokens by their mask.
    """

    name: str
    kind: Kind
    build: Callable[[], Selector]
    registered: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    temperature_end: float | None = None
    pool: Pool = masked_mean

    def temperature_at(self, progress: float) -> float:
        """Return the temperature after this share of the steps, 0 to 1."""
        if self.temperature_end is None:
            return self.temperature
        return self.temperature * (self.temperature_end / self.temperature) ** progress


class KeepAll(Selector):
    """Keeps every token, in training and in eval: what a classifier without selection reaches."""

    trains_scorer = False

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        return self.decide(logits, request.alive, 0)

    def decide(self, logits: Tensor, alive: Tensor, k: int | Tensor) -> Selection:
        return Selection(alive, alive.to(logits.dtype), alive.to(logits.dtype))


def _library(
    name: str,
    registered: str,
    kind: Kind = "library",
    temperature: float = 1.0,
    temperature_end: float | None = None,
    **options: Any,
) -> SelectionVariant:
    def build() -> Selector:
        return create_selector(registered, **options)

    return SelectionVariant(name, kind, build, registered, options, temperature, temperature_end)


VARIANTS = (
    SelectionVariant("all", "control", KeepAll),
    _library("none", "topk", "control", gradient="none"),
    _library("random", "random", "control"),
    _library("topk", "topk"),
    _library("topk_0.2", "topk", temperature=0.2),
    _library("topk_gate", "topk", gradient="gate"),
    _library("gumbel_topk", "gumbel_topk"),
    _library("gumbel_topk_0.2", "gumbel_topk", temperature=0.2),
    _library("soft_topk", "soft_topk", temperature_end=0.1),
    _library("perturbed_topk", "perturbed_topk", sigma=0.5, samples=16),
    _library("gumbel_sigmoid", "gumbel_sigmoid"),
    _library("ste", "ste"),
    _library("ste_0.2", "ste", temperature=0.2),
    _library("ste_bernoulli", "ste", backward="bernoulli"),
    _library("ste_reinmax", "ste", backward="reinmax"),
    _library("threshold_ste", "threshold_ste"),
    _library("score_function", "score_function", distribution="plackett_luce"),
    _library("score_function_bernoulli", "score_function", distribution="bernoulli"),
    SelectionVariant("unclamped_gate", "known bad", known_bad.UnguardedGate, pool=known_bad.unclamped_mean),
    SelectionVariant("single_gumbel", "known bad", known_bad.SingleGumbel),
    SelectionVariant("perturbed_diagonal", "known bad", known_bad.DiagonalPerturbedTopK),
)
