"""Make Vision Transformers cheaper by merging or dropping tokens while they run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dynavit.errors import InputError
from dynavit.version import __version__ as __version__

if TYPE_CHECKING:
    from dynavit.checkpoints.convert import convert
    from dynavit.commands.comparisons import compare_methods, compare_runs
    from dynavit.commands.models import evaluate, export, export_all
    from dynavit.commands.prediction import embed, predict, visualize
    from dynavit.commands.speed import benchmark, benchmark_selectors, benchmark_suite
    from dynavit.commands.training import check_data, train
    from dynavit.commands.tuning import plan, tune
    from dynavit.deployment.formats import open_exported
    from dynavit.models import PrunedViT, Trace, create_model, load, prune
    from dynavit.models.ratios import ratios_removing
    from dynavit.models.thresholds import calibrate
    from dynavit.reducers import list_reducers
    from dynavit.scorers import list_scorers
    from dynavit.selectors import (
        Selection,
        Selector,
        check_selector,
        create_selector,
        list_selectors,
        register_selector,
    )


__all__ = [
    "InputError",
    "PrunedViT",
    "Selection",
    "Selector",
    "Trace",
    "benchmark",
    "benchmark_selectors",
    "benchmark_suite",
    "calibrate",
    "check_data",
    "check_selector",
    "compare_methods",
    "compare_runs",
    "convert",
    "create_model",
    "create_selector",
    "embed",
    "evaluate",
    "export",
    "export_all",
    "list_reducers",
    "list_scorers",
    "list_selectors",
    "load",
    "open_exported",
    "plan",
    "predict",
    "prune",
    "ratios_removing",
    "register_selector",
    "train",
    "tune",
    "visualize",
]

# packages that need torch are imported when something of theirs is first asked for
_PACKAGES = ("models", "reducers", "scorers", "selectors")
_MODULES = {
    "calibrate": "models.thresholds",
    "convert": "checkpoints.convert",
    "list_reducers": "reducers",
    "list_scorers": "scorers",
    "open_exported": "deployment.formats",
    "ratios_removing": "models.ratios",
    **dict.fromkeys(("compare_methods", "compare_runs"), "commands.comparisons"),
    **dict.fromkeys(("benchmark", "benchmark_selectors", "benchmark_suite"), "commands.speed"),
    **dict.fromkeys(("evaluate", "export", "export_all"), "commands.models"),
    **dict.fromkeys(("embed", "predict", "visualize"), "commands.prediction"),
    **dict.fromkeys(("check_data", "train"), "commands.training"),
    **dict.fromkeys(("plan", "tune"), "commands.tuning"),
    **dict.fromkeys(("PrunedViT", "Trace", "create_model", "load", "prune"), "models"),
    **dict.fromkeys(
        ("Selection", "Selector", "check_selector", "create_selector", "list_selectors", "register_selector"),
        "selectors",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a public name, or a package, when it is first asked for."""
    if name in _PACKAGES:
        return import_module(f"dynavit.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"dynavit.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """Return names that are not imported yet, too."""
    return sorted({*globals(), *__all__, *_PACKAGES})
