"""Re-identification in several spectra through the trainer and the tools, on the made-up people."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import dynavit
from dynavit import InputError
from dynavit.cli import main
from dynavit.config import Config, LossConfig, load_config
from dynavit.data.quickstart_spectra import SyntheticSpectra
from dynavit.evaluation.sweep import evaluate_run
from dynavit.models.spectra import SpectraEmbedding
from dynavit.runs.open import open_run
from dynavit.selectors import list_selectors
from dynavit.tasks import create_task
from dynavit.tasks.reid import ReidObjective, Searchable, check_spectra
from dynavit.training.dense_first import train
from dynavit.training.trainer import Trainer

M = 3
CONFIG = """
task: reid
model:
  architecture: vit_tiny_patch16_224
  kwargs: {img_size: [96, 48], patch_size: 16, embed_dim: 24, depth: 3, num_heads: 3}
  stages: [1, 2]
  keep_ratio: 0.6
  selector: topk
  scorer: {name: guided, guides: 2}
  reducer: drop
data:
  name: quickstart-multimodal
  options: {train_identities: 8, test_identities: 4, images_per_identity: 4, gallery_per_camera: 1}
  batch_size: 8
  images_per_identity: 2
  augmentation: {flip: 0.5, pad: 2, erase: 0.3}
  workers: 0
optimizer: {lr: 2.0e-3}
train: {epochs: 2, log_steps: 1}
loss: {token_distillation_weight: 0.0}
evaluate: {rounds: 1, keep_ratios: [1.0, 0.5], batch_sizes: [2], rivals: none}
"""
Make = Callable[..., Config]


@pytest.fixture(scope="module")
def config_for(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("multimodal")
    (folder / "config.yaml").write_text(CONFIG)
    return lambda name="run", *overrides: load_config(
        folder / "config.yaml", [f"output_dir={folder / name}", *overrides]
    )


@pytest.fixture(scope="module")
def run_folder(config_for: Make) -> Path:
    config = config_for()
    result = Trainer(config).fit()
    assert {"val/map", "val/rank1", "val/foreground_recall"} <= result.keys()
    return config.run_dir


def test_a_run_writes_a_model_that_knows_its_spectra(run_folder: Path) -> None:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/loss"] == pytest.approx(rows[-1]["train/identity"] + rows[-1]["train/metric"], rel=1e-4)
    model = dynavit.load(run_folder)
    assert model.num_spectra == M
    assert model.metadata["spectra"] == ["colour", "near infrared", "thermal infrared"]
    embedding = model(torch.randn(2, M, 3, 96, 48))
    assert embedding.shape == (2, M * 24)


@pytest.mark.slow
@pytest.mark.parametrize("selector", [name for name in list_selectors() if name != "fixed"])
def test_guided_training_does_not_diverge_with_any_selector_as_it_is(selector: str, config_for: Make) -> None:
    config = config_for(f"selector-{selector}", f"model.selector={selector}", "model.keep_ratio=0.5", "train.epochs=8")
    Trainer(config).fit()
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/identity"] < rows[0]["train/identity"]
    assert all(torch.isfinite(value).all() for value in dynavit.load(config.run_dir).state_dict().values())


@pytest.mark.slow
def test_evaluation_says_what_is_left_where_spectra_are_missing(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_folder)]) == 0
    assert "The model as trained, with some spectra missing" in capsys.readouterr().out
    rows = json.loads((run_folder / "spectra.json").read_text())
    assert [row["spectra"] if row["spectra"] == "all" else len(row["spectra"]) for row in rows] == [
        "all", 2, 2, 2, 1, 1, 1,
    ]  # fmt: skip
    run = open_run(run_folder)
    assert run.config is not None
    data = create_task(run.config).open_data(run.preprocessing, train=False)
    samples = torch.stack([data.validation[index][0] for index in range(len(data.validation))])
    indices = torch.arange(len(samples))
    for row in rows:
        there = [row["spectra"] == "all" or name in row["spectra"] for name in data.spectra]
        with torch.inference_mode():
            features = run.model(samples, present=torch.tensor(there).expand(len(samples), -1))
        found = Searchable(features, indices, data).search().summary()
        assert found["map"] == pytest.approx(row["map"], abs=1e-3)
        assert row.get("delta_map", 0) == pytest.approx(row["map"] - rows[0]["map"], abs=1e-9)
    for name in ("report.html", "kept_tokens.png", "ranked_lists.png", "spectra.md"):
        assert (run_folder / name).exists()


def test_foreground_recall_is_over_all_spectra(run_folder: Path) -> None:
    run = open_run(run_folder)
    assert run.config is not None
    data = create_task(run.config).open_data(run.preprocessing, train=False)
    recalls = []
    for index in range(len(data.validation)):
        sample, mask = data.validation[index][0], data.validation.foreground(index)
        _, trace = run.model(sample[None], return_trace=True)
        seen = torch.from_numpy(mask).view(6, 16, 3, 16).float().mean(dim=(1, 3)).flatten() >= 0.1
        kept, seen = trace.stages[0].kept.flatten(), seen.repeat(M)
        recalls.append(float((kept & seen).sum() / min(kept.sum(), seen.sum())))
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val/foreground_recall"] == pytest.approx(sum(recalls) / len(recalls), abs=1e-4)


@pytest.mark.parametrize("extra", [{}, {"center_weight": 0.5}, {"metric": {"name": "arcface"}}])
def test_losses_are_means_over_the_heads(extra: dict[str, Any]) -> None:
    model = dynavit.create_model("test_vit", num_identities=4, spectra=M, scorer="light").train()
    torch.manual_seed(0)
    objective = ReidObjective(LossConfig(label_smoothing=0.1, **extra), model, None, None, None)  # type: ignore[arg-type]
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    each = torch.randn(8, M, 64, requires_grad=True)
    output = SpectraEmbedding(each.flatten(1), torch.randn(8, 4), each, torch.randn(8, M, 4))
    terms = objective.task_losses(output, labels)
    assert ("center" in terms) == ("center_weight" in extra)
    logits = [output.logits, *output.each_logits.unbind(dim=1)]
    identity = sum(F.cross_entropy(one, labels, label_smoothing=0.1) for one in logits) / 4
    torch.testing.assert_close(terms["identity"][0], identity)
    features = [output.features, *output.each_features.unbind(dim=1)]
    losses = [head["metric"] for head in objective._losses.heads]  # type: ignore[union-attr]
    assert (objective.module is not None) == bool(extra)
    metric = sum(loss(one, labels)[0] for loss, one in zip(losses, features, strict=True)) / 4
    torch.testing.assert_close(terms["metric"][0], metric)
    terms["metric"][0].backward()
    assert all((each.grad[:, number] != 0).any() for number in range(M))  # type: ignore[index]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.selector=ste", "loss.token_distillation_weight=0.5"],
        ["model.selector=score_function", "loss.reward_samples=2"],
        ["model.selector={name: topk, gradient: none}", "model.scorer=distinctness", "model.reducer=merge_nearest"],
        ["model.execution=mask", "model.side={scale: 1.0}"],
    ],
)
def test_with_what_else_can_be_trained(
    overrides: list[str], config_for: Make, run_folder: Path, tmp_path: Path
) -> None:
    """From a model of the same people: its neck, and a teacher that sees each spectrum as an image."""
    start = [f"model.checkpoint={run_folder}", "model.architecture=null", "model.kwargs={}"]
    config = config_for("other", f"output_dir={tmp_path}", "train.epochs=1", *start, *overrides)
    result = Trainer(config).fit()
    assert 0 <= result["val/map"] <= 100


@pytest.mark.slow
def test_missing_spectra_of_own_data_are_evaluated(tmp_path: Path, run_folder: Path) -> None:
    data = SyntheticSpectra(False, 4, gallery_per_camera=1)
    for index in range(len(data)):
        split = "query" if index < data.num_query else "gallery"
        pictures, who = data[index]
        for name, picture in zip("abc", pictures, strict=True):
            if (index, name) in ((0, "a"), (20, "b"), (20, "c")):
                continue
            file = tmp_path / split / name / str(who) / f"c{data.cameras[index]}_{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
    run = open_run(run_folder)
    assert run.config is not None
    run.config.data.name, run.config.data.root = "folder", str(tmp_path)
    run.config.data.options = {"spectra": ["a", "b", "c"], "camera_pattern": r"c(?P<camera>\d)_"}
    rows = evaluate_run(run, [0.6], [], tmp_path / "out", rivals="none")
    assert rows[-1]["images"] == data.num_query
    whole = json.loads((tmp_path / "out" / "spectra.json").read_text())[0]
    task = create_task(run.config)
    opened = task.open_data(run.preprocessing, train=False)
    assert int((~opened.present).sum()) == 3
    samples = torch.stack([opened.validation[index][0] for index in range(len(opened.validation))])
    with torch.inference_mode():
        told = run.model(samples, present=opened.present)
        untold = run.model(samples)
    searched = Searchable(told, torch.arange(len(samples)), opened).search().summary()
    assert searched["map"] == pytest.approx(whole["map"], abs=1e-3)
    assert not torch.equal(told, untold)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.scorer.guides=1"], r"guides=1: .* each spectrum is guided by 2 other\(s\): set guides=2"),
        (["data.name=quickstart-reid"], r"guides=2: .* nothing gives it any here: set guides=0"),
        (
            ["data.name=quickstart-reid", "model.pretrained=true", "model.kwargs={}"],
            r"guides=2: .* nothing gives it any here: set guides=0",
        ),
    ],
)
def test_guides_that_nobody_gives_are_refused_before_anything_is_written(
    overrides: list[str], message: str, config_for: Make, tmp_path: Path
) -> None:
    config = config_for("wrong", f"output_dir={tmp_path / 'run'}", *overrides)
    with pytest.raises(InputError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run-dense").exists()


def test_spectra_of_another_number_or_order_are_refused(run_folder: Path, tmp_path: Path) -> None:
    run = open_run(run_folder)
    assert run.config is not None
    run.config.data.name, run.config.data.options = "quickstart-reid", {"test_identities": 4, "train_identities": 4}
    with pytest.raises(InputError, match=r"trained on colour, .* infrared, and the data have one image"):
        evaluate_run(run, [0.6], [], tmp_path, rivals="none")
    model = open_run(run_folder).model
    data = create_task(load_config(run_folder / "config.yaml")).open_data(run.preprocessing, train=False)
    check_spectra(model, data)
    check_spectra(model, replace(data, spectra=("a", "b", "c")))  # other names for the same
    with pytest.raises(InputError, match="the same spectra in the same order"):
        check_spectra(model, replace(data, spectra=data.spectra[::-1]))


@pytest.mark.slow
def test_thresholds_of_a_run_are_calibrated_and_evaluated(run_folder: Path, tmp_path: Path) -> None:
    rows = evaluate_run(open_run(run_folder), [0.6], [], tmp_path, adaptive=True, rivals="none")
    (adaptive,) = [row for row in rows if row["model"] == "adaptive"]
    assert len(adaptive["tokens"]) == 2
    assert sum(adaptive["tokens_histogram"]["images"]) == 32 * M
    assert adaptive["gmacs"] == pytest.approx(rows[1]["gmacs"], rel=0.25)


@pytest.mark.parametrize("command", [["predict"], ["visualize"], ["tune", "--speedup", "1.2"]])
def test_commands_for_single_pictures_say_what_to_do(
    command: list[str], run_folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *more = command
    assert main([name, str(run_folder), "--images", str(pictures / "val"), *more]) == 2
    assert "sees 3 spectra of each sample, and this works on single pictures" in capsys.readouterr().err
    if name == "tune":
        assert main(["plan", str(run_folder), "--keep-ratio", "0.7"]) == 2
        assert "sees 3 spectra of each sample" in capsys.readouterr().err
