"""The experiment behind the default method: nothing learns from what it is judged by, and costs are what they say."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from dynavit.config import LossConfig, OptimizerConfig
from dynavit.cost.macs import closed_form_macs
from dynavit.cost.timing import measure
from dynavit.errors import InputError
from dynavit.evaluation.equal_macs import plain_dropping_macs
from dynavit.models import PrunedViT, prune
from dynavit.tasks.objective import Scheduled
from studies import quiet
from studies.default_method import images, teacher, times
from studies.default_method.candidates import CANDIDATES, Candidate
from studies.default_method.experiment import DENSE, Cell, Problem, build, read_rows, run_cells
from studies.default_method.finetune import (
    DenseObjective,
    Recipe,
    Shrunk,
    answers,
    finetune,
    normalise,
    resampled_tokens,
    resized,
)
from studies.default_method.parts import Part
from studies.default_method.report import read_lines, tables

RECIPE = Recipe(2, 4, OptimizerConfig(lr=1e-3), LossConfig(logit_distillation_weight=0.5))


def dense_vit() -> PrunedViT:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 6, "num_heads": 2, "num_classes": 3}
    return prune(timm.create_model("vit_tiny_patch16_224", **size), stages=()).eval()


def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 12, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(12) % 3
    return Problem(dense_vit(), pixels, labels, pixels[0], labels)


def test_images_held_out_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "HELD_OUT", 3)
    for split, count in (("train", 5), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{number}.png")
    found = images.Photographs.of(tmp_path)
    assert found.files == images.Photographs.of(tmp_path).files
    train, choose, val = (set(found.files[split]) for split in ("train", "choose", "val"))
    assert (len(train), len(choose), len(val)) == (7, 3, 4)
    assert train.isdisjoint(choose)
    assert (train | choose).isdisjoint(val)
    assert found.labels("val") == [0, 0, 1, 1]
    linked = found.linked(tmp_path / "links", "choose")
    assert {path.resolve() for path in linked.glob("val/*/*.png")} == {path.resolve() for path in choose}
    monkeypatch.setattr(images, "HELD_OUT", 5)
    with pytest.raises(InputError, match="more than 10 images"):
        images.Photographs.of(tmp_path)


def test_the_teacher_answers_without_having_seen_the_label() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(5, 40, 6, generator=generator), torch.arange(40) % 3
    plain = teacher.cross_fitted(features, labels)
    labels[7] = (labels[7] + 1) % 3
    changed = teacher.cross_fitted(features, labels)
    fold = torch.arange(40) % teacher.FOLDS == 7 % teacher.FOLDS
    assert torch.equal(plain[:, fold], changed[:, fold])
    assert not torch.equal(plain[:, ~fold], changed[:, ~fold])


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_every_candidate_learns_within_its_budget(candidate: Candidate) -> None:
    given = problem()
    model, loss = build(given.dense, Cell(candidate.name, 0.7, 32, 0))
    recipe = replace(RECIPE, loss=replace(RECIPE.loss, **loss))
    assert "reducer" in candidate.options
    assert closed_form_macs(model) <= plain_dropping_macs(given.dense, 0.7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finetune(model.train(), model, given.dense.backbone, given.pixels, given.labels, recipe, seed=0)
    changed = {name.partition(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
    learn = {part for part in ("scorers", "reducer") if list(getattr(model, part).parameters())}
    assert changed == {"backbone"} | learn
    assert len(answers(model.eval(), given.seen)) == 12


def test_a_smaller_image_is_seen_smaller_and_its_teacher_is_not() -> None:
    given = problem()
    model = resized(given.dense, 16)
    assert model.adapter.grid_size == (2, 2)
    assert given.dense.adapter.grid_size == (4, 4)
    runner = Shrunk(model)
    pictures = torch.rand(2, 3, 32, 32)
    expected = model(torch.nn.functional.interpolate(pictures, (16, 16), mode="bicubic", antialias=True))
    assert torch.equal(runner(pictures), expected)
    finetune(model.train(), runner, given.dense.backbone, given.pixels, given.labels, RECIPE, seed=0)


def test_smaller_images_imitate_the_tokens_of_the_same_place() -> None:
    tokens = torch.zeros(1, 16, 2)
    tokens[0, 7, 1] = 1.0  # second row, last column of 4
    assert torch.equal(resampled_tokens(tokens, 16), tokens)
    smaller = resampled_tokens(tokens, 4)
    assert smaller[..., 1].argmax() == 1  # first row, last column of 2
    assert smaller[..., 0].count_nonzero() == 0
    given = problem()
    images, index = normalise(given.seen), torch.arange(12)
    loss = LossConfig(token_distillation_weight=1.0)
    model = deepcopy(given.dense)
    objective = DenseObjective(loss, model.selector, None, given.dense.backbone)
    same, _ = objective(model, images, given.labels, index, Scheduled(1.0, ()))
    shrunk, _ = objective(Shrunk(resized(given.dense, 16)), images, given.labels, index, Scheduled(1.0, ()))
    assert same["token_distillation"] == 0
    assert shrunk["token_distillation"] > 0.01


def test_the_speed_of_every_row_is_measured_while_nothing_else_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["random, drop", "ToMe"]
    part = Part("tiny", lambda _: None, lambda *_: problem(), RECIPE, names, (0.7,), (0.7, 0.35), 32, (32, 16))
    monkeypatch.setattr(times, "ROUNDS", 1)
    monkeypatch.setattr(times, "measure", partial(measure, min_seconds=0.0))
    table = times.measure_times(part, dense_vit(), tmp_path / "times.json")
    found = json.loads((tmp_path / "times.json").read_text())
    expected = ["dense at 32 px", "dense at 16 px", "random, drop at 0.7", "random, drop at 0.35", "ToMe at 0.7"]
    assert list(found["seconds"]) == expected
    assert table == times.speed_table(found)
    monkeypatch.setattr(quiet.os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    with pytest.raises(InputError, match=r"keep 1\.5 cores busy"):
        quiet.require_quiet()
    monkeypatch.setattr(quiet.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    quiet.require_quiet()


@pytest.mark.slow
def test_what_was_stopped_goes_on(tmp_path: Path) -> None:
    cells = [Cell(DENSE, 1.0, size, 0) for size in (32, 16)]
    cells += [Cell(name, 0.7, 32, 0) for name in ("random, drop", "class attention, drop")]
    run_cells(tmp_path, problem, cells[:3], RECIPE, (0.5,), workers=1)
    first = read_rows(tmp_path)
    run_cells(tmp_path, problem, cells, RECIPE, (0.5,), workers=1)
    rows = read_rows(tmp_path)
    assert rows[:3] == first
    assert len(rows) == 4
    assert list(rows[3]["results"]) == ["0.7", "0.5"]
    line = next(line for line in read_lines(tmp_path, [0]) if line.name == "random, drop" and line.evaluated == 0.5)
    assert line.mean_top1 == pytest.approx(line.hits.mean())
    text = tables(tmp_path, [0])
    assert "Trained at 0.7, evaluated at 0.5" in text
    assert "dense at 16 px" in text


@pytest.mark.gpu
def test_every_candidate_is_trained_on_a_gpu(tmp_path: Path) -> None:
    cells = [Cell(DENSE, 1.0, size, 0) for size in (32, 16)]
    cells += [Cell(candidate.name, 0.7, 32, 0) for candidate in CANDIDATES]
    run_cells(tmp_path, problem, cells, replace(RECIPE, bf16=True), (0.5,), workers=2, device="cuda")
    assert [torch.cuda.get_device_name() in row["machine"] for row in read_rows(tmp_path)] == [True] * len(cells)
