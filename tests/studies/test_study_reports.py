"""What the studies write can be read back, and the command says what is wrong with bad input."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from dynavit.report.table import Column, aligned, markdown
from studies.cli import main
from studies.spread import Spread, quantile
from studies.writer import write_results


@dataclass(frozen=True)
class Row:
    name: str
    loss: Spread
    kept: list[Spread]


ROWS = [
    Row("good", Spread(1.5, 1.0, 2.0), [Spread(0.5, 0.5, 0.5), Spread(0.25, 0.25, 0.25)]),
    Row("bad one", Spread.of([1.0, math.nan]), [Spread(math.inf, 1.0, math.inf)]),
]
COLUMNS = [
    Column("name", [row.name for row in ROWS], left=True),
    Column("|loss|", [f"{row.loss.mean:.1f}" for row in ROWS]),
]


def test_tables_are_aligned() -> None:
    assert aligned(COLUMNS).splitlines() == [
        "name     |loss|",
        "-------  ------",
        "good        1.5",
        "bad one     nan",
    ]
    assert markdown(COLUMNS).splitlines() == [
        "| name | \\|loss\\| |",
        "| --- | --: |",
        "| good | 1.5 |",
        "| bad one | nan |",
    ]


def test_files_hold_every_number(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    write_results(folder, "study", COLUMNS, ROWS, {"seeds": [0, 1]}, ["A note."])
    stored = json.loads((folder / "study.json").read_text())
    assert stored["settings"]["seeds"] == [0, 1]
    assert stored["rows"][0]["loss"] == {"mean": 1.5, "low": 1.0, "high": 2.0}
    assert stored["rows"][1]["kept"][0]["mean"] == "inf"  # JSON has no infinity
    with (folder / "study.csv").open() as file:
        good, bad = csv.DictReader(file)
    assert (good["name"], good["loss_high"], good["kept_2_mean"]) == ("good", "2.0", "0.25")
    assert (bad["loss_mean"], bad["kept_1_low"], bad["kept_2_mean"]) == ("nan", "1.0", "")
    text = (folder / "study.md").read_text()
    assert text.startswith("| name |")
    assert "A note." in text
    assert "seeds 0 1" in text


def test_infinite_gradients_have_quantiles_too() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([1.0, math.inf, math.inf], 0.5) == math.inf
    assert quantile([1.0, 2.0, math.inf], 0.5) == 2.0


@pytest.mark.parametrize(("study", "variant"), [("stability", "control"), ("selection", "all")])
def test_the_command_writes_a_study(
    study: str, variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [study, "--variants", variant, "--seeds", "3", "--steps", "10", "--output", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("variant")
    assert f"\n{variant} " in shown
    assert Image.open(tmp_path / f"{study}.png").width > 1000
    stored = json.loads((tmp_path / f"{study}.json").read_text())
    assert [row["variant"] for row in stored["rows"]] == [variant]
    assert stored["rows"][0]["runs"][0]["seed"] == 3
    assert stored["settings"]["steps"] == 10


@pytest.mark.slow
def test_three_spectra_have_a_figure_of_their_own(tmp_path: Path) -> None:
    arguments = ["stability", "--variants", "spectra_1e10,spectra_guided", "--seeds", "3", "--steps", "10"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    assert Image.open(tmp_path / "stability-spectra.png").width > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "a"], "--seeds a"),
        (["--steps", "0"], "steps 0"),
        (["--variants", "topkk"], "unknown variant 'topkk'. Did you mean 'topk'?"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["selection", "--output", str(tmp_path / "none"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("arguments", [["stabilty"], ["selection", "--steps", "few"], []])
def test_wrong_arguments_are_named_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    shown = capsys.readouterr().err
    assert shown.startswith("error: argument") or "required: study" in shown
    assert shown.count("\n") == 1


def test_the_output_is_tried_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.report.report_selection", None)
    (tmp_path / "file").write_text("")
    for output in ("/proc/nowhere/results", str(tmp_path / "file"), str(tmp_path / "file" / "results")):
        assert main(["selection", "--output", output]) == 2
        shown = capsys.readouterr().err
        assert output in shown
        assert shown.count("\n") == 1


def test_a_study_is_not_one_of_several_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["selection", "--output", str(tmp_path / "none")]) == 2
    assert "study works in one process" in capsys.readouterr().err
