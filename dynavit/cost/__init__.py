"""What a model costs: multiply-accumulates and time."""

from dynavit.cost.latency import block_latency
from dynavit.cost.macs import closed_form_macs, count_macs, tokens_per_stage
from dynavit.cost.timing import measure, median_ratio

__all__ = ["block_latency", "closed_form_macs", "count_macs", "measure", "median_ratio", "tokens_per_stage"]
