"""Accuracy, cost and speed."""

from dynavit.metrics.accuracy import topk_accuracy
from dynavit.metrics.efficiency import closed_form_macs, count_macs, tokens_per_stage
from dynavit.metrics.foreground import foreground_recall, patch_mask
from dynavit.metrics.timing import measure, median_ratio

__all__ = [
    "closed_form_macs",
    "count_macs",
    "foreground_recall",
    "measure",
    "median_ratio",
    "patch_mask",
    "tokens_per_stage",
    "topk_accuracy",
]
