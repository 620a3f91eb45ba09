"""Accuracy, cost and speed."""

from dynavit.metrics.accuracy import topk_accuracy
from dynavit.metrics.bootstrap import paired_bootstrap
from dynavit.metrics.efficiency import closed_form_macs, count_macs, tokens_per_stage
from dynavit.metrics.foreground import foreground_recall, patch_mask
from dynavit.metrics.latency import block_latency
from dynavit.metrics.reranking import expand_queries, rerank, rerank_blocks
from dynavit.metrics.retrieval import RetrievalResult, rank_gallery, retrieval_metrics
from dynavit.metrics.timing import measure, median_ratio

__all__ = [
    "RetrievalResult",
    "block_latency",
    "closed_form_macs",
    "count_macs",
    "expand_queries",
    "foreground_recall",
    "measure",
    "median_ratio",
    "paired_bootstrap",
    "patch_mask",
    "rank_gallery",
    "rerank",
    "rerank_blocks",
    "retrieval_metrics",
    "tokens_per_stage",
    "topk_accuracy",
]
