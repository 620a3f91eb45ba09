"""The figure of training losses."""

from pathlib import Path

import pytest
from PIL import Image

import dynavit
from dynavit.report.losses import plot_losses


def rows(*losses: float) -> list[dict[str, float]]:
    return [{"epoch": n, "train/loss": loss, "val/map": 10.0 * n} for n, loss in enumerate(losses, start=1)]


def test_every_run_is_drawn(tmp_path: Path) -> None:
    plot_losses({"topk": rows(3.0, 2.0, 1.0)}, tmp_path / "one.png", "map")
    plot_losses({"topk": rows(3.0, 2.0, 1.0), "ste": rows(3.0, 2.5, 2.0)}, tmp_path / "two.png", "map")
    one, two = (Image.open(tmp_path / name).convert("RGB") for name in ("one.png", "two.png"))
    blue, vermilion = (0, 114, 178), (213, 94, 0)
    counts = [{colour: count for count, colour in image.getcolors(1 << 20)} for image in (one, two)]
    assert counts[0][blue] > 300
    assert vermilion not in counts[0]
    assert counts[1][vermilion] > 200


def test_a_run_without_an_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dynavit.InputError, match="new has no complete epoch"):
        plot_losses({"old": rows(1.0), "new": []}, tmp_path / "x.png", "map")
