"""Pictures and pages."""

from dynavit.report.histogram import plot_token_counts
from dynavit.report.html import write_report
from dynavit.report.losses import plot_losses
from dynavit.report.pareto import plot_pareto
from dynavit.report.patches import draw_groups, draw_kept
from dynavit.report.ranked_lists import ranked_list_figure
from dynavit.report.summary import headline
from dynavit.report.table import format_table
from dynavit.report.tokens import kept_token_grid, trace_grid

__all__ = [
    "draw_groups",
    "draw_kept",
    "format_table",
    "headline",
    "kept_token_grid",
    "plot_losses",
    "plot_pareto",
    "plot_token_counts",
    "ranked_list_figure",
    "trace_grid",
    "write_report",
]
