"""Models that somebody altered: saved so that they load again, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import dynavit
from dynavit import InputError
from dynavit.deployment.predict import label_images
from dynavit.runs.open import open_run

NAME = "vit_tiny_patch16_224"
KW = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 3}


def pruned(**options: object) -> dynavit.PrunedViT:
    return dynavit.prune(timm.create_model(NAME, **{**KW, **options}), stages=(1, 2), scorer="mlp").eval()


def test_replaced_parts_are_refused(tmp_path: Path) -> None:
    model = pruned()
    model.backbone = timm.create_model(NAME, **{**KW, "num_classes": 5})
    with pytest.raises(InputError, match="backbone was replaced"):
        model.save_pretrained(tmp_path)
    model = pruned()
    model.scorers = model.scorers[:1]
    with pytest.raises(InputError, match="1 scorers for 2 stages"):
        model.save_pretrained(tmp_path)
    model = pruned()
    model.metadata = "mine"
    with pytest.raises(InputError, match="metadata='mine'"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("how", ["forward", "hook"])
def test_what_changes_after_a_first_save_is_noticed(tmp_path: Path, how: str) -> None:
    model = pruned()
    model.save_pretrained(tmp_path / "first")
    mlp = model.backbone.blocks[0].mlp
    if how == "forward":
        mlp.forward = lambda x: x
    else:
        mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(InputError, match="outputs"):
        model.save_pretrained(tmp_path / "second")


def double(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


@pytest.mark.parametrize(
    "alter",
    [
        lambda model: model.register_forward_hook(double),
        lambda model: model.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,)),
        lambda model: model.scorers[0].register_forward_hook(lambda module, inputs, output: -output),
        lambda model: setattr(model.scorers[1], "forward", lambda x, *_: x[..., 0]),
        lambda model: model.backbone.norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].tanh(),)),
    ],
)
def test_code_that_no_file_would_hold_is_refused(alter: Callable[[Any], object], tmp_path: Path) -> None:
    model = pruned().train()
    seen: list[object] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.save_pretrained(tmp_path / "watched")
    assert seen
    assert model.training
    before = {name: dict(part._forward_hooks) for name, part in model.named_modules()}
    alter(model)
    with pytest.raises(InputError, match="cannot be saved"):
        model.save_pretrained(tmp_path / "altered")
    assert not list((tmp_path / "altered").glob("*.safetensors"))
    for name, part in model.named_modules():  # all of them are as they were
        assert before[name].items() <= part._forward_hooks.items()
    assert model.scorers[0].training


def test_tied_weights_and_attention_pooling_load_equal(tmp_path: Path) -> None:
    tied = pruned()
    tied.backbone.blocks[1].mlp.fc1.weight = tied.backbone.blocks[0].mlp.fc1.weight
    for number, model in enumerate((tied, pruned(global_pool="map", class_token=False))):
        images = torch.randn(2, 3, 32, 32)
        model.save_pretrained(tmp_path / str(number))
        with torch.inference_mode():
            assert torch.equal(dynavit.load(tmp_path / str(number))(images), model(images))


def test_names_of_classes_follow_the_classifier(tmp_path: Path) -> None:
    model = pruned()
    model.metadata = {"class_names": ["a", "b", "c"], "author": "me"}
    model.reset_classifier(3)
    assert model.metadata["class_names"] == ["a", "b", "c"]
    model.reset_classifier(5)
    assert model.metadata == {"author": "me"}
    model.metadata = {"class_names": ["a"]}
    model.save_pretrained(tmp_path / "few")
    with pytest.raises(InputError, match=r"config\.json, metadata\.class_names: 1 names, but the model has 5"):
        open_run(tmp_path / "few")
    model.reset_classifier(0)
    model.save_pretrained(tmp_path / "none")
    with pytest.raises(InputError, match="has no classifier"):
        label_images(open_run(tmp_path / "none"), iter(()))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file"):
            pruned().save_pretrained(place)
    assert (tmp_path / "file").read_text() == "mine"
    pruned().save_pretrained(tmp_path / "there")
    assert json.loads((tmp_path / "there/config.json").read_text())["architecture"] == NAME


@pytest.mark.parametrize(
    ("look", "key"),
    [
        ({"mean": "x"}, "mean"),
        ({"std": [0, 0, 0]}, "std"),
        ({"std": [1e-40] * 3}, "std"),
        ({"mean": [True] * 3}, "mean"),
        ({"crop_pct": -1}, "crop_pct"),
    ],
)
def test_impossible_preprocessing_names_file_and_key(look: dict[str, object], key: str, tmp_path: Path) -> None:
    pruned().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "preprocessing": look}))
    with pytest.raises(InputError, match=rf"config\.json: preprocessing\.{key}="):
        dynavit.load(tmp_path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_but_finite_ones_is_saved_or_read(number: str, tmp_path: Path) -> None:
    model = pruned()
    model.metadata = {"deep": [{"er": float(number)}]}
    with pytest.raises(InputError, match="metadata hold no plain data, or NaN"):
        model.save_pretrained(tmp_path)
    model.metadata = {"deep": [{"er": 0.25}]}
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("0.25", number))
    with pytest.raises(InputError, match=rf"config\.json is not valid JSON \(it holds {number}, which is no finite"):
        dynavit.load(tmp_path)


@pytest.mark.parametrize("place", [None, 5, ""])
def test_no_place_at_all(place: object) -> None:
    with pytest.raises(InputError, match="load"):
        dynavit.load(place)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="save_pretrained"):
        pruned().save_pretrained(place)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "numbers", [("a", 196, 12), (8, 196, None), (float("nan"), 196, 12), (8, 196, 0), (True, 9, 1)]
)
def test_ratios_removing_takes_whole_numbers(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"whole number|at least 1"):
        dynavit.ratios_removing(*numbers)
