"""Losses beside the task loss."""

from dynavit.losses.distillation import logit_distillation, score_distillation, token_distillation
from dynavit.losses.gather import gather_with_gradient
from dynavit.losses.keep_ratio import keep_ratio_loss
from dynavit.losses.latency import expected_latency, latency_loss, poisson_binomial
from dynavit.losses.metric import MetricLoss, create_metric_loss
from dynavit.losses.policy_gradient import leave_one_out, policy_gradient_loss

__all__ = [
    "MetricLoss",
    "create_metric_loss",
    "expected_latency",
    "gather_with_gradient",
    "keep_ratio_loss",
    "latency_loss",
    "leave_one_out",
    "logit_distillation",
    "poisson_binomial",
    "policy_gradient_loss",
    "score_distillation",
    "token_distillation",
]
