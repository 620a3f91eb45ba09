"""Smaller images and other models beside pruned ones: right sizes, right accuracy, right cost, nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import dynavit
from dynavit.cli import main
from dynavit.config import Config
from dynavit.cost.macs import closed_form_macs
from dynavit.errors import InputError
from dynavit.evaluation.rivals import all_smaller_images, at_size, nearest, parse_rivals, smaller_images
from dynavit.evaluation.sweep import evaluate_run
from dynavit.models import PrunedViT, prune
from dynavit.runs.open import open_run
from dynavit.training.trainer import Trainer
from tests.conftest import make_backbone

Make = Callable[..., Config]
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 3}


def dense_vit(**changes: Any) -> PrunedViT:
    torch.manual_seed(0)
    return prune(timm.create_model("vit_tiny_patch16_224", **(TINY | changes)), stages=()).eval()


@pytest.fixture
def runs(tiny: Make) -> tuple[Path, Path]:
    """A pruned run and the dense one that it started from."""
    dense = tiny("model.stages=[]", "train.epochs=1", folder="dense")
    Trainer(dense).fit()
    config = tiny("train.epochs=1", folder="pruned")
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense.run_dir), None, {}
    Trainer(config).fit()
    return config.run_dir, dense.run_dir


@pytest.mark.parametrize("text", ["", "big", "192,", "0", "-16", "192;160", "1.5", "auto,160"])
def test_a_setting_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--rivals .*evaluate\.rivals"):
        parse_rivals(text)


def test_heights_and_words() -> None:
    assert parse_rivals("192, 160") == [192, 160]
    assert parse_rivals("auto") is None
    assert parse_rivals("none") == []


@pytest.mark.parametrize("height", [0, 12, 32, 40])
def test_a_height_that_cannot_be_is_refused(height: int) -> None:
    with pytest.raises(InputError, match="a multiple of 8 pixels, the patch size, below 32"):
        smaller_images(dense_vit(), {"image_size": (32, 32)}, height)


def test_the_width_follows_the_height() -> None:
    rivals = all_smaller_images(dense_vit(img_size=(64, 32)), {"image_size": (64, 32), "mean": 0.5})
    sizes = [rival.image_size for rival in rivals]
    assert sizes == [(56, 32), (48, 24), (40, 16), (32, 16), (24, 16)]
    assert rivals[1].about == {"rival": "dense, 48x24 px", "image_size": [48, 24]}
    assert rivals[1].preprocessing == {"image_size": (48, 24), "mean": 0.5}


def test_overlapping_patches_have_smaller_images_too() -> None:
    """Their rows are more than the image has patches that do not overlap."""
    dense = dynavit.create_model("vit_tiny_patch16_224", stages=(), patch_stride=4, **(TINY | {"img_size": (64, 32)}))
    rivals = all_smaller_images(dense.eval(), {"image_size": (64, 32)})
    assert [rival.image_size for rival in rivals][:2] == [(56, 32), (48, 24)]
    for rival in rivals:
        assert rival.image_size is not None
        assert rival.model(torch.randn(1, 3, *rival.image_size)).shape == (1, 3)
    assert sorted((rival.macs for rival in rivals), reverse=True) == [rival.macs for rival in rivals]


def test_those_nearest_in_cost_are_chosen_once() -> None:
    assert nearest([9, 8, 2], [10, 7.9, 4, 1]) == [0, 1, 3]
    assert nearest([5, 4.5], [10, 5, 1]) == [1]
    assert nearest([], [10, 5]) == []


def test_every_backbone_sees_smaller_images_and_stays_as_it_is(family: str) -> None:
    dense = prune(make_backbone(family), stages=()).eval()
    own = dense.adapter.image_size
    assert own is not None
    rows, columns = dense.adapter.grid_of(own)
    patch = dense.adapter.patch_size
    size = ((rows - 1) * patch[0], (columns - 1) * patch[1])
    images, small = torch.randn(2, dense.adapter.in_chans, *own), torch.randn(2, dense.adapter.in_chans, *size)
    with torch.inference_mode():
        before = dense(images)
        smaller = at_size(dense, size)
        assert smaller(small).shape == before.shape
        assert torch.equal(dense(images), before)
    assert closed_form_macs(smaller, image_size=size) < closed_form_macs(dense)


def test_positions_alone_are_not_shared() -> None:
    dense = dense_vit()
    smaller = at_size(dense, (16, 16))
    shared = {id(weight) for weight in dense.parameters()}
    assert [name for name, weight in smaller.named_parameters() if id(weight) not in shared] == ["backbone.pos_embed"]


def test_rivals_stand_beside_the_ratios_on_the_same_images(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pruned, dense = runs
    words = ["evaluate.rivals=24,16", "evaluate.rounds=1"]
    rows = evaluate_run(open_run(pruned, overrides=words), [0.5], [2], tmp_path, rival_runs=[dense])
    assert [row.get("rival") for row in rows] == [None, None, "dense, 24 px", "dense, 16 px", "dense"]
    first, other = rows[0], rows[-1]
    assert other["rival_run"] == str(dense)
    assert {name: other[name] for name in ("top1", "gmacs", "images")} == {
        name: first[name] for name in ("top1", "gmacs", "images")
    }
    assert (other["delta_top1"], other["delta_top1_low"], other["delta_top1_high"]) == (0, 0, 0)
    assert rows[3]["gmacs"] < rows[2]["gmacs"] < first["gmacs"]
    assert all(row["throughput"]["2"]["speedup"] > 0 for row in rows[2:])
    assert all(row["images"] == 12 for row in rows)
    assert "dense, 24 px" in (tmp_path / "report.html").read_text()


def test_a_smaller_image_is_made_of_the_file(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """What a run of smaller images would be evaluated on, not what is left of a larger one."""
    pruned, dense = runs
    rows = evaluate_run(open_run(pruned), [], [], tmp_path, rivals="16")
    small = tmp_path / "small"
    model = dynavit.load(dense)
    model.set_input_size(img_size=16)
    model.metadata["preprocessing"]["image_size"] = [16, 16]
    model.save_pretrained(small)
    data = open_run(pruned).config
    assert data is not None
    alone = dynavit.evaluate(small, batch_sizes=[], overrides={"data.root": str(data.data.root)}, output=tmp_path)
    assert rows[-1]["top1"] == alone[0]["top1"]
    assert rows[-1]["gmacs"] == alone[0]["gmacs"]


def test_a_pruned_rival_says_what_it_keeps(runs: tuple[Path, Path], tmp_path: Path) -> None:
    row = evaluate_run(open_run(runs[0]), [], [], tmp_path, rivals="none", rival_runs=[runs[0]])[-1]
    assert (row["rival"], row["keep_ratio"], row["tokens"]) == ("pruned", [0.5, 0.25], [8, 4])
    assert "0.5/0.25" in (tmp_path / "report.html").read_text()


def test_without_speed_the_nearest_macs_decide(runs: tuple[Path, Path], tmp_path: Path) -> None:
    rows = evaluate_run(open_run(runs[0]), [0.9], [], tmp_path, rivals="auto")
    assert [row["rival"] for row in rows[2:]] == ["dense, 24 px"]
    rows = evaluate_run(open_run(runs[1]), None, [], tmp_path, rivals="auto")
    assert [row["model"] for row in rows] == ["dense"]  # nothing to be near to


def test_a_rival_of_other_classes_or_of_another_task_is_refused(
    runs: tuple[Path, Path], reid: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = dense_vit(num_classes=2)
    other.metadata = {"class_names": ["cat", "dog"]}
    other.save_pretrained(tmp_path / "cats")
    arguments = ["evaluate", str(runs[0]), "--no-timing", "--output", str(tmp_path / "out"), "--rival-run"]
    assert main([*arguments, str(tmp_path / "cats")]) == 2
    assert "its classes are not those of" in capsys.readouterr().err
    people = dynavit.create_model("vit_tiny_patch16_224", num_identities=4, stages=(), **(TINY | {"num_classes": 0}))
    people.save_pretrained(tmp_path / "people")
    assert main([*arguments, str(tmp_path / "people")]) == 2
    assert "a model for re-identification" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_speed_costs(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(runs[0]), "--keep-ratios", "0.5", "--batch-sizes", "2", "--rivals", "24,16"]
    assert main([*arguments, "--output", str(tmp_path), "evaluate.rounds=1"]) == 0
    said = capsys.readouterr().out
    assert "What speed costs, in points" in said
    assert "smaller images" in said
    rows = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["image_size"] for row in rows if row["model"] == "rival"] == [[24, 24], [16, 16]]
    assert main([*arguments, "evaluate.rivals=none"]) == 2
    assert "--rivals says it already" in capsys.readouterr().err
