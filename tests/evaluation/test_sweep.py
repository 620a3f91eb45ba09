"""The sweep, and accuracy itself."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.stats import binomtest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

import dynavit
from dynavit.cli import main
from dynavit.config import Config, save_config
from dynavit.data.samples import Samples
from dynavit.evaluation.sweep import evaluate_run
from dynavit.models.thresholds import calibrate
from dynavit.runs.build import build_start
from dynavit.runs.images import list_images, read_images
from dynavit.runs.loading import first_images, make_loader, random_samples
from dynavit.runs.open import open_run
from dynavit.tasks import create_task
from dynavit.training.trainer import Trainer

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


@pytest.mark.usefixtures("own_accelerate")
def test_the_precision_of_an_earlier_training_is_not_that_of_the_evaluation(tiny: Make, tmp_path: Path) -> None:
    config = tiny("train.epochs=1", "train.mixed_precision=bf16")
    seen: set[tuple[bool, bool]] = set()

    def look(model: torch.nn.Module, _: Any) -> None:
        seen.add((model.training, torch.is_autocast_enabled(next(model.parameters()).device.type)))

    trainer = Trainer(config)
    trainer.model.register_forward_pre_hook(look)
    trainer.fit()
    assert {(True, True), (False, True)} <= seen  # in validation, too
    seen.clear()
    opened = open_run(config.run_dir, overrides=["data.workers=0"])
    opened.model.register_forward_pre_hook(look)
    evaluate_run(opened, [opened.model.keep_ratios[0]], [], tmp_path)
    assert seen == {(False, False)}
    with pytest.raises(dynavit.InputError, match=r"mixed_precision=no: this process used Accelerate in another"):
        Trainer(tiny(folder="other"))


def test_every_image_is_read_once_for_all_rows(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()
    read = Samples.__getitem__

    def counted(data: Samples, index: int) -> Any:
        seen[index] += 1
        return read(data, index)

    monkeypatch.setattr(Samples, "__getitem__", counted)
    opened = open_run(run, overrides=["data.workers=0"])
    rows = evaluate_run(opened, [1.0, 0.7, 0.5, 0.3], [], tmp_path)
    assert len(rows) == 5
    assert sum(seen.values()) == rows[0]["images"] + 4  # those that are drawn


class HalfRead(Dataset[Any]):
    """Ten samples, of which the even ones cannot be read."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return (torch.full((3, 2, 2), index), 0, index) if index % 2 else None


def test_samples_that_cannot_be_read_are_made_up_for() -> None:
    assert [int(image[0, 0, 0]) for image in first_images(HalfRead(), 3)] == [1, 3, 5]
    for seed in range(5):
        batches = random_samples(HalfRead(), 4, 2, seed=seed)
        assert sum(len(indices) for _, indices in batches) == 4
        assert all((indices % 2 == 1).all() for _, indices in batches)


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
    tables = {"evaluation.json", "evaluation.csv", "classes.csv", "confusions.csv"}
    assert written == tables | {"pareto.png", "kept_tokens.png", "report.html"}
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


@pytest.mark.slow
def test_without_a_dense_model_that_knows_the_classes_all_tokens_are_the_base(
    tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("train.epochs=1")
    Trainer(config).fit()
    rows = evaluate_run(open_run(config.run_dir), [0.5], [2], tmp_path)
    assert [(row["model"], row["keep_ratio"]) for row in rows] == [("dense", 1.0), ("pruned", 1.0), ("pruned", 0.5)]
    dense, full, half = rows
    assert "top1" not in dense
    assert dense["gmacs"] == full["gmacs"]
    assert half["gmacs_ratio"] == pytest.approx(dense["gmacs"] / half["gmacs"])
    assert dense["throughput"]["2"]["speedup"] == 1
    assert half["delta_top1"] == pytest.approx(half["top1"] - full["top1"])
    assert half["delta_top1_low"] <= half["delta_top1"] <= half["delta_top1_high"]
    capsys.readouterr()
    assert main(["evaluate", str(config.run_dir), "--keep-ratios", "0.5", "--no-timing"]) == 0
    assert capsys.readouterr().out.splitlines()[-3] == (
        "top-1 on 12 images. Fewer MACs and speedup: against the dense model; delta in points, against keep ratio 1.0, "
        "where all tokens are kept. No dense model of these classes was found, so that row has no accuracy."
    )


def test_accuracy_comes_with_its_interval(run: Path, tmp_path: Path) -> None:
    for row in evaluate_run(open_run(run), [0.5], [], tmp_path):
        assert row["images"] == 12
        low, high = binomtest(round(row["top1"] * 12 / 100), 12).proportion_ci(method="wilson")
        assert (row["top1_low"], row["top1_high"]) == pytest.approx((100 * low, 100 * high))


def test_other_classes_than_the_model_learned_are_refused(run: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "val", tmp_path / "data" / "val")
    (tmp_path / "data" / "val" / "red").rename(tmp_path / "data" / "val" / "violet")
    with pytest.raises(dynavit.InputError, match=r"images of violet, .*the model .* blue, green, red"):
        evaluate_run(open_run(run, overrides=[f"data.root={tmp_path / 'data'}"]), [0.5], [], tmp_path / "out")


def test_without_its_start_a_run_is_evaluated_alone(run: Path, tmp_path: Path) -> None:
    (run.parent / "dense").rename(run.parent / "elsewhere")
    with pytest.warns(UserWarning, match=r"no accuracy of a dense model.*dense does not exist"):
        rows = evaluate_run(open_run(run), [1.0, 0.5], [], tmp_path / "out")
    assert [row["model"] for row in rows] == ["dense", "pruned", "pruned"]
    assert "top1" not in rows[0]


def test_images_go_to_the_model_s_device(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with --device cuda:1 where Accelerate takes cuda:0: its device is not asked."""
    expected = evaluate_run(open_run(run), [0.5], [], tmp_path)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    assert evaluate_run(open_run(run), [0.5], [], tmp_path) == expected


def test_a_batch_that_no_memory_holds_is_refused_before_the_work(run: Path, tmp_path: Path) -> None:
    with pytest.raises(dynavit.InputError, match=r"--batch-sizes \[65537\]: at most 65,536"):
        evaluate_run(open_run(run), [0.5], [65537], tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
        ((metrics, *_),) = task.evaluate([opened.model], loader, accelerator, data)
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
        results.append(task.evaluate([model], loader, accelerator, data)[0].metrics["foreground_recall"])
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


# images that keep different numbers of tokens


@pytest.mark.slow
def test_adaptive_rows_stand_behind_those_of_their_ratio(run: Path, tmp_path: Path) -> None:
    adaptive_rows = evaluate_run(
        open_run(run, overrides=["evaluate.adaptive=true", "evaluate.rounds=1"]), output=tmp_path / "out"
    )
    names = [(row["model"], row["keep_ratio"]) for row in adaptive_rows]
    assert names == [("dense", 1.0), ("pruned", 1.0), ("pruned", 0.5), ("adaptive", 0.5)]
    dense, _, half, row = adaptive_rows
    assert row["gmacs"] == pytest.approx(half["gmacs"], rel=0.05)
    assert row["gmacs_ratio"] == pytest.approx(dense["gmacs"] / row["gmacs"])
    assert row["delta_top1"] == pytest.approx(row["top1"] - dense["top1"])
    assert row["throughput"]["2"]["images_per_second"] > 0
    edges, images = row["tokens_histogram"]["edges"], row["tokens_histogram"]["images"]
    assert len(edges) == 11
    assert len(images) == 10
    assert sum(images) == 12
    assert len(set(np.diff(edges))) == 1
    assert edges[0] <= row["tokens"][-1] <= row["tokens_p95"] < edges[-1]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert "token_counts.png" in written
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == adaptive_rows
    with (tmp_path / "out/evaluation.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(tokens) for tokens in table[3]["tokens"].split()] == row["tokens"]
    assert table[3]["tokens_histogram_images"].split() == [str(count) for count in images]
    assert table[2]["tokens_p95"] == ""
    page = (tmp_path / "out/report.html").read_text()
    assert "as many as each image needs" in page
    assert "p95" in page


def test_adaptive_rows_say_what_a_plain_loop_finds(run: Path, tmp_path: Path) -> None:
    """Thresholds, accuracy, mean tokens and mean MACs, image by image."""
    opened = open_run(run, overrides=["evaluate.calibration_images=20"])
    row = evaluate_run(opened, [0.5], [], tmp_path / "out", adaptive=True)[2]
    task = create_task(opened.config)
    data = task.open_data(opened.preprocessing, augment=False)
    samples = random_samples(data.train, 20, 20)
    model = opened.model
    thresholds = calibrate(model, lambda: [images for images, _ in samples], 0.5)
    assert row["thresholds"] == pytest.approx(thresholds, abs=1e-5)
    with torch.inference_mode():
        _, trace = model(samples[0][0], return_trace=True)
    assert [int(count.sum()) for count in trace.counts] == [20 * 8, 20 * 4]
    hits, counts, macs = [], [], []
    for image, label, _ in (data.validation[i] for i in range(len(data.validation))):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            logits, trace = model(image[None], return_trace=True)
        hits.append(int(logits.argmax()) == label)
        counts.append([int(mask.sum()) for mask in [stage.kept for stage in trace.stages]])
        macs.append(counter.get_total_flops() // 2)
    assert row["top1"] == pytest.approx(100 * sum(hits) / len(hits))
    assert row["tokens"] == pytest.approx(np.mean(counts, axis=0))
    assert row["gmacs"] == pytest.approx(np.mean(macs) / 1e9)


def test_calibration_reads_training_images_as_validation_does(tiny: Make) -> None:
    config = tiny("data.augmentation={hflip: 1.0, scale: [0.2, 0.3]}")
    preprocessing = {"image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    plain = create_task(config).open_data(preprocessing, augment=False)
    augmented = create_task(config).open_data(preprocessing)
    assert torch.equal(augmented.validation[0][0], plain.validation[0][0])
    samples = random_samples(plain.train, 10, 4)
    assert [len(indices) for _, indices in samples] == [4, 4, 2]
    indices = torch.cat([indices for _, indices in samples]).tolist()
    assert len(set(indices)) == 10
    assert {int(plain.train[index][1]) for index in indices} == {0, 1, 2}  # not just the first class
    again = random_samples(plain.train, 10, 10)
    assert torch.equal(again[0][0], torch.cat([images for images, _ in samples]))
    assert not torch.equal(augmented.train[indices[0]][0], samples[0][0][0])
    assert random_samples(plain.train, 10, 10, seed=1)[0][1].tolist() != indices
    assert sum(len(indices) for _, indices in random_samples(plain.train, 100, 7)) == 24


@pytest.mark.parametrize(
    ("override", "said"),
    [("model.selector.name=random", "Random does not read"), ("model.reducer.name=merge", "Merge does not read")],
)
def test_adaptive_is_refused_where_no_scores_are_read(override: str, said: str, tiny: Make, tmp_path: Path) -> None:
    config = tiny("train.epochs=1", "train.steps_per_epoch=1", override)
    model = build_start(config, ["blue", "green", "red"]).model
    model.metadata = {"class_names": ["blue", "green", "red"]}
    config.run_dir.mkdir()
    model.save_pretrained(config.run_dir)
    save_config(config, config.run_dir / "config.yaml")
    with pytest.raises(dynavit.InputError, match=rf"evaluate.adaptive=true .*{said}"):
        evaluate_run(open_run(config.run_dir), [0.5], [], tmp_path / "out", adaptive=True)
    assert not (tmp_path / "out").exists()


def test_the_command_evaluates_adaptively(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(run), "--adaptive", "--keep-ratios", "0.5", "--no-timing", "--output", str(tmp_path)]
    assert main([*arguments, "evaluate.calibration_images=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["model", "keep", "ratio", "tokens", "p95"]
    assert [line.split()[0] for line in lines[2:5]] == ["dense", "pruned", "adaptive"]
    assert main([*arguments, "evaluate.calibration_images=0"]) == 2
    assert "evaluate.calibration_images=0: must be above 0" in capsys.readouterr().err


def test_thresholds_of_a_model_told_cameras_are_calibrated_with_them(reid: Make, tmp_path: Path) -> None:
    config = reid("train.epochs=1", "model.side={scale: 3.0}")
    Trainer(config).fit()
    opened = open_run(config.run_dir)
    torch.nn.init.normal_(opened.model.side.table, std=3.0)
    (row,) = (row for row in evaluate_run(opened, [0.5], [], tmp_path, adaptive=True) if row["model"] == "adaptive")
    task = create_task(opened.config)
    data = task.open_data(opened.preprocessing, augment=False)
    ((images, indices),) = random_samples(data.train, 512, 512)
    told = calibrate(opened.model, lambda: [(images, task.inputs(opened.model, data, indices, train=True))], 0.5)
    assert row["thresholds"] == pytest.approx(told, abs=1e-5)
    assert row["thresholds"] != pytest.approx(calibrate(opened.model, lambda: [images], 0.5), abs=1e-3)
    assert (tmp_path / "ranked_lists.png").exists()


# other ways to reduce tokens


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.reducer.name=fuse", "model.scorer.name=class_attention", "model.placement=inside"),
        ("model.reducer.name=squeeze", "model.count_rule=current"),
        ("model.reducer={name: aggregate, tokens: 3}",),
        ("model.reducer.name=merge", "model.placement=inside", "model.count_rule=linear"),
    ],
    ids=["fuse", "squeeze", "aggregate", "merge"],
)
def test_every_reducer_is_evaluated(overrides: tuple[str, ...], tiny: Make, tmp_path: Path) -> None:
    config = tiny(
        "data.name=quickstart", "data.root=null", "data.options={validation_size: 6, train_size: 20}", *overrides
    )
    names = [str(digit) for digit in range(10)]
    model = build_start(config, names).model
    model.metadata = {"class_names": names}
    config.run_dir.mkdir()
    model.save_pretrained(config.run_dir)
    save_config(config, config.run_dir / "config.yaml")
    merges = "model.reducer.name=merge" in overrides
    opened = open_run(config.run_dir)
    rows = evaluate_run(opened, [1.0, 0.6], [], tmp_path / "out", adaptive=not merges)
    assert [row["model"] for row in rows] == ["dense", "pruned", "pruned", "adaptive"][: len(rows)]
    assert rows[0]["gmacs"] == rows[1]["gmacs"] > rows[2]["gmacs"]
    assert ("foreground_recall" in rows[2]) == (not merges)  # merging chooses no tokens
    data = create_task(config).open_data(opened.preprocessing)
    images = torch.stack([data.validation[index][0] for index in range(4)])
    expected = [kept + opened.model.reducer.makes for kept in rows[2]["tokens"]]
    opened.model.set_keep_ratio(0.6)
    with torch.inference_mode():
        _, trace = opened.model(images, return_trace=True)
    if "aggregate" not in overrides[0]:
        assert [int(lengths[0]) for lengths in [stage.length for stage in trace.stages]] == expected
    assert (tmp_path / "out" / "kept_tokens.png").stat().st_size > 1000
