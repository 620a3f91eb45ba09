"""Losses beside the task loss."""

from dynavit.losses.distillation import logit_distillation, token_distillation
from dynavit.losses.keep_ratio import keep_ratio_loss

__all__ = ["keep_ratio_loss", "logit_distillation", "token_distillation"]
