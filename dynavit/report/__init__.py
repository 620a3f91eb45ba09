"""Pictures and pages."""

from dynavit.report.html import write_report
from dynavit.report.pareto import plot_pareto
from dynavit.report.table import format_table, headline
from dynavit.report.tokens import draw_kept, kept_token_grid

__all__ = ["draw_kept", "format_table", "headline", "kept_token_grid", "plot_pareto", "write_report"]
