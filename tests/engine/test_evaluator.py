"""The sweep, and accuracy itself."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import dynavit
from dynavit.config import Config
from dynavit.engine.build import build_start
from dynavit.engine.evaluator import evaluate_run
from dynavit.engine.loading import make_loader
from dynavit.engine.run import list_images, open_run, read_images
from dynavit.engine.tasks import create_task
from dynavit.engine.trainer import Trainer

Make = Callable[..., Config]


@pytest.fixture
def run(tiny: Make) -> Path:
    """A pruned run fine-tuned from a dense one."""
    dense = tiny("model.stages=[]", "train.epochs=3", folder="dense")
    Trainer(dense).fit()
    config = tiny("train.epochs=1", folder="pruned")
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense.run_dir), None, {}
    Trainer(config).fit()
    return config.run_dir


def test_the_sweep_reports_the_dense_start_first_and_everything_relative_to_it(run: Path, tmp_path: Path) -> None:
    rows = evaluate_run(open_run(run), output=tmp_path / "out")
    assert [(row["model"], row["keep_ratio"]) for row in rows] == [
        ("dense", 1.0),
        ("pruned", 1.0),
        ("pruned", 0.5),
    ]
    dense, full, half = rows
    assert dense["tokens"] == []
    assert half["tokens"] == [8, 4]
    assert full["gmacs"] == dense["gmacs"] > half["gmacs"]
    for row in rows:
        assert row["gmacs_ratio"] == pytest.approx(dense["gmacs"] / row["gmacs"])
        assert row["delta_top1"] == pytest.approx(row["top1"] - dense["top1"])
        assert row["throughput"]["2"]["images_per_second"] > 0
    assert dense["throughput"]["2"]["speedup"] == 1
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"evaluation.json", "evaluation.csv", "pareto.png", "kept_tokens.png", "report.html"}
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == rows
    with (tmp_path / "out/evaluation.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["top1"]) for row in table] == [row["top1"] for row in rows]
    assert table[2]["tokens"] == "8 4"


def test_the_dense_row_is_the_model_that_the_run_started_from(run: Path, tiny: Make, tmp_path: Path) -> None:
    rows = evaluate_run(open_run(run), keep_ratios=[], batch_sizes=[], output=tmp_path)
    alone = evaluate_run(open_run(run.parent / "dense"), batch_sizes=[], output=tmp_path)
    assert [row["model"] for row in alone] == ["dense"]
    assert rows[0]["top1"] == alone[0]["top1"]


def test_a_run_whose_start_knew_nothing_has_no_dense_row(tiny: Make, tmp_path: Path) -> None:
    config = tiny("train.epochs=1")
    Trainer(config).fit()
    rows = evaluate_run(open_run(config.run_dir), [0.5], [], tmp_path)
    assert [row["model"] for row in rows] == ["pruned"]


def test_other_classes_than_the_model_learned_are_refused(run: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "val", tmp_path / "data" / "val")
    (tmp_path / "data" / "val" / "red").rename(tmp_path / "data" / "val" / "violet")
    with pytest.raises(dynavit.InputError, match=r"blue, green, violet .* blue, green, red"):
        evaluate_run(open_run(run, overrides=[f"data.root={tmp_path / 'data'}"]), [0.5], [], tmp_path / "out")


def test_without_its_start_a_run_is_evaluated_alone(run: Path, tmp_path: Path) -> None:
    (run.parent / "dense").rename(run.parent / "elsewhere")
    with pytest.warns(UserWarning, match=r"no dense row.*dense does not exist"):
        rows = evaluate_run(open_run(run), [1.0, 0.5], [], tmp_path / "out")
    assert [row["model"] for row in rows] == ["pruned", "pruned"]


def test_a_bad_ratio_is_refused_before_anything_is_measured(run: Path, tmp_path: Path) -> None:
    with pytest.raises(dynavit.InputError, match=r"keep_ratio=1.5"):
        evaluate_run(open_run(run), [0.5, 1.5], [], tmp_path)
    assert not list(tmp_path.glob("evaluation.*"))


def test_accuracy_equals_a_plain_loop(run: Path) -> None:
    opened = open_run(run)
    task = create_task(opened.config)
    data = task.open_data(opened.preprocessing)
    hits = []
    for image, label, _ in (data.validation[i] for i in range(len(data.validation))):
        hits.append(int(opened.model(image[None]).argmax()) == label)
    accelerator = Accelerator(cpu=True)
    for batch_size in (5, 12):  # the last batch may be smaller
        loader = accelerator.prepare(make_loader(data.validation, batch_size, 0))
        metrics = task.evaluate(opened.model, loader, accelerator, data)
        assert metrics["top1"] == pytest.approx(100 * sum(hits) / len(hits))


def test_foreground_recall_of_known_selections(tiny: Make) -> None:
    """A selection by the true foreground recalls all of it; its opposite recalls none it can avoid."""
    config = tiny("data.name=quickstart", "data.root=null", "data.options={validation_size: 6, train_size: 8}")
    config.model.kwargs |= {"img_size": 64}
    start = build_start(config, [str(digit) for digit in range(10)])
    task = create_task(config)
    data = task.open_data({"image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0})
    accelerator = Accelerator(cpu=True)
    foreground = data.validation.foreground
    model = start.model.eval()
    model.set_keep_ratio([0.25, 0.25])
    masks = torch.stack(
        [torch.from_numpy(foreground(i)).float().reshape(8, 8, 8, 8).mean((1, 3)).flatten() for i in range(6)]
    )
    results = []
    for sign in (1, -1):
        best = (sign * masks).topk(16, dim=1).indices
        keep = torch.zeros(6, 64, dtype=torch.bool).scatter(1, best, True)
        model.selector = dynavit.create_selector("fixed")
        model.selector.decisions = [keep, keep]
        loader = make_loader(data.validation, 6, 0)
        results.append(task.evaluate(model, loader, accelerator, data)["foreground_recall"])
    assert results == [1.0, 0.0]


def test_images_of_every_kind_are_read_and_bad_ones_reported(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for mode in ("RGB", "L", "P", "CMYK", "RGBA"):
        suffix = "tiff" if mode == "CMYK" else "png"
        Image.new(mode, (45, 31), 1 if mode in "LP" else None).save(folder / f"{mode}.{suffix}")
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("ignored")
    opened = open_run(run)
    paths = list_images(folder)
    assert len(paths) == 6
    batches = list(read_images(opened, paths, 4))
    assert sum(len(good) for good, *_ in batches) == 5
    assert [line for *_, problems in batches for line in problems if "broken.jpg" in line]
    assert all(images.shape[1:] == (3, 32, 32) for good, images, _ in batches if good)
    with pytest.raises(dynavit.InputError, match=r"none of the 1 image"):
        list(read_images(opened, [folder / "broken.jpg"], 4))
