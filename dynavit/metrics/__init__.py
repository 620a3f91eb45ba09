"""How good the answers are: accuracy, retrieval, intervals."""

from dynavit.metrics.accuracy import topk_accuracy
from dynavit.metrics.bootstrap import paired_bootstrap
from dynavit.metrics.foreground import foreground_recall, patch_mask
from dynavit.metrics.reranking import expand_queries, rerank, rerank_blocks
from dynavit.metrics.retrieval import RetrievalResult, rank_gallery, retrieval_metrics

__all__ = [
    "RetrievalResult",
    "expand_queries",
    "foreground_recall",
    "paired_bootstrap",
    "patch_mask",
    "rank_gallery",
    "rerank",
    "rerank_blocks",
    "retrieval_metrics",
    "topk_accuracy",
]
