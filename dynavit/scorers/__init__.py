"""What tells a selector how much each token matters: one logit a token."""

from dynavit.scorers.anchored import AnchoredScorer
from dynavit.scorers.attention import (
    AttentionReceived,
    ClassAttention,
    LatentAttention,
    MeanAttention,
    QueryAttention,
    ValueAttention,
)
from dynavit.scorers.base import (
    BlockAttention,
    Scorer,
    StageView,
    create_scorer,
    list_scorers,
    register_scorer,
    scorer_config,
)
from dynavit.scorers.distinctness import Distinctness
from dynavit.scorers.guided import GuidedScorer
from dynavit.scorers.key_norm import KeyNorm
from dynavit.scorers.light import LightPredictor
from dynavit.scorers.linear import LinearScorer
from dynavit.scorers.predictor import ScorePredictor
from dynavit.scorers.random import RandomScorer

__all__ = [
    "AnchoredScorer",
    "AttentionReceived",
    "BlockAttention",
    "ClassAttention",
    "Distinctness",
    "GuidedScorer",
    "KeyNorm",
    "LatentAttention",
    "LightPredictor",
    "LinearScorer",
    "MeanAttention",
    "QueryAttention",
    "RandomScorer",
    "ScorePredictor",
    "Scorer",
    "StageView",
    "ValueAttention",
    "create_scorer",
    "list_scorers",
    "register_scorer",
    "scorer_config",
]
