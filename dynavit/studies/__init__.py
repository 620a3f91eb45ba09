"""Two small studies: which training through a selection is stable, and how well each selector learns."""

from dynavit.studies.selection import SelectionRow, SelectionRun, run_selection
from dynavit.studies.stability import StabilityRow, StabilityRun, run_stability

__all__ = ["SelectionRow", "SelectionRun", "StabilityRow", "StabilityRun", "run_selection", "run_stability"]
