"""Pictures and pages."""

from dynavit.report.html import write_report
from dynavit.report.losses import plot_losses
from dynavit.report.pareto import plot_pareto
from dynavit.report.ranked import ranked_list_figure
from dynavit.report.table import format_table, headline
from dynavit.report.tokens import draw_kept, kept_token_grid

__all__ = [
    "draw_kept",
    "format_table",
    "headline",
    "kept_token_grid",
    "plot_losses",
    "plot_pareto",
    "ranked_list_figure",
    "write_report",
]
