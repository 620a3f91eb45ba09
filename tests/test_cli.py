"""The tools as users call them: output, exit status, one clear line on bad input."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynavit.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model, saved as a training run would."""
    import dynavit

    model = dynavit.create_model(
        "vit_tiny_patch16_224",
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=3,
        stages=(1, 2), keep_ratio=0.5,
    )  # fmt: skip
    model.metadata = {"class_names": ["red", "green", "blue"]}
    folder = tmp_path_factory.mktemp("run")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


@pytest.mark.parametrize("tool", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_tools_run_from_anywhere_and_explain_themselves(tool: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"dynavit {tool}" in shown


def test_predict_writes_labels_and_reports_what_it_could_not_read(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("labels.csv", "labels.json"):
        assert main(["predict", str(run), "--images", str(images), "--output", str(tmp_path / name)]) == 0
        assert "broken.png cannot be read" in capsys.readouterr().err
    rows = json.loads((tmp_path / "labels.json").read_text())
    assert len(rows) == 10
    assert {row["label"] for row in rows} <= {"red", "green", "blue"}
    assert all(1 / 3 <= row["probability"] <= 1 for row in rows)
    with (tmp_path / "labels.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == [row["label"] for row in rows]


def test_predict_does_not_depend_on_the_batch(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for size in ("1", "7"):
        assert main(["predict", str(run), "--images", str(images), "--batch-size", size]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_visualize_draws_pages(run: Path, images: Path, tmp_path: Path) -> None:
    arguments = ["visualize", str(run), "--images", str(images), "--output", str(tmp_path)]
    assert main([*arguments, "--keep-ratio", "0.7"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2
    first = np.asarray(Image.open(tmp_path / "kept_tokens_001.png"))
    assert main([*arguments, "--keep-ratio", "0.2"]) == 0
    assert not np.array_equal(first, np.asarray(Image.open(tmp_path / "kept_tokens_001.png")))


def test_selectors_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selectors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= {"topk", "gumbel_sigmoid", "ste", "random", "fixed"}
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "nowhere"], "nowhere does not exist"),
        (["evaluate", "{images}"], "config.json does not exist"),
        (["evaluate", "{run}"], "has no config.yaml"),
        (["predict", "{run}", "--images", "nowhere"], "nowhere does not exist"),
        (["predict", "{run}", "--images", "{run}"], "holds no images"),
        (["predict", "{run}", "--images", "{images}", "--output", "labels.txt"], "must end in .csv or .json"),
        (["visualize", "{run}", "--images", "{images}", "--keep-ratio", "1.5"], "keep_ratio=1.5"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["train", "--config", "{yaml}", "model.architecture=resnet18"], "ResNet cannot be pruned"),
        (["train", "--config", "{yaml}", "model.architecture=vit_tny"], "timm has no model 'vit_tny'"),
        (["train", "--config", "{yaml}", "data.root=nowhere"], "nowhere"),
        (["train", "--config", "{yaml}", "model.stages=[4,2]"], "stages=[4, 2]"),
        (["train", "--config", "{yaml}", "model.checkpoint=nowhere.pth"], "nowhere.pth does not exist"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line_and_status_2(
    arguments: list[str],
    said: str,
    run: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text(f"model: {{architecture: test_vit}}\noutput_dir: {tmp_path / 'out'}\n")
    filled = [part.format(run=run, images=images, yaml=yaml) for part in arguments]
    assert main(filled) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert shown.startswith("error: ")
    assert "\n" not in shown
    assert not (tmp_path / "out").exists()
