"""What the Python interface is given and cannot use: one message that names it."""

import math
from typing import Any

import pytest
import torch

import dynavit
from dynavit.errors import InputError, did_you_mean

SIZE = {"img_size": 64}


def refuse(match: str, function: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def model() -> dynavit.PrunedViT:
    return dynavit.create_model("test_vit", stages=(2, 4), **SIZE)


@pytest.mark.parametrize("ratio", ["0.5", "", None, True, math.nan, {}, ["0.5", 0.2], [0.5, None], torch.ones(2)])
def test_ratios_that_are_no_numbers(model: dynavit.PrunedViT, ratio: Any) -> None:
    before = model.keep_ratios
    refuse("keep_ratio", model.set_keep_ratio, ratio)
    refuse("keep_ratio", model.at_ratio, ratio)
    if ratio is not None:
        refuse("keep_ratio", dynavit.create_model, "test_vit", keep_ratio=ratio, **SIZE)
    assert model.keep_ratios == before


@pytest.mark.parametrize("thresholds", ["xy", [None, 1.0], ["a", "b"], 3, [True, False], [math.nan, 0.0]])
def test_thresholds_that_are_no_numbers(model: dynavit.PrunedViT, thresholds: Any) -> None:
    refuse("thresholds", model.set_thresholds, thresholds)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (None, "of type NoneType"),
        ([torch.zeros(1, 3, 64, 64)], "of type list"),
        ("x", "of type str"),
        (torch.zeros(3, 64, 64), r"of shape \(3, 64, 64\)"),
        (torch.zeros(1, 1, 3, 64, 64), r"of shape \(1, 1, 3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), r"of shape \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"of torch\.uint8"),
        (torch.zeros(1, 3, 64, 64) > 0, r"of torch\.bool"),
    ],
)
def test_what_is_no_batch_of_images(model: dynavit.PrunedViT, images: Any, said: str) -> None:
    for function in (model, model.forward_features, model.forward_intermediates):
        refuse(rf"images {said}.*give a tensor \(B, 3, H, W\)", function, images)


@pytest.mark.parametrize("name", ["execution", "mask_form", "placement"])
@pytest.mark.parametrize("value", ["foo", None, "AUTO", []])
def test_attributes_take_known_words_only(model: dynavit.PrunedViT, name: str, value: Any) -> None:
    before = getattr(model, name)
    refuse(f"{name}=.*one of '", setattr, model, name, value)
    assert getattr(model, name) == before


@pytest.mark.parametrize("name", [None, "", 3, ["test_vit"], b"test_vit"])
def test_names_that_are_no_text(name: Any) -> None:
    refuse("architecture=", dynavit.create_model, name)


@pytest.mark.parametrize("key", ["img_size", "patch_size", "patch_stride"])
@pytest.mark.parametrize("size", [(64,), [64], 0, -1, "64", (64, 64, 64), (64, "x"), 64.0, math.nan, True, {}])
def test_sizes_that_are_none(key: str, size: Any) -> None:
    refuse(f"{key}=.*height", dynavit.create_model, "test_vit", **{**SIZE, key: size})


@pytest.mark.parametrize(
    "kwargs",
    [{"num_heads": 5}, {"num_classes": 10**15}, {"mlp_ratio": math.inf}, {"act_layer": "x"}, {"block_fn": 3}],
    ids=str,
)
def test_arguments_that_timm_trips_over(kwargs: dict[str, Any]) -> None:
    refuse(
        f"timm cannot create test_vit with .*{next(iter(kwargs))}", dynavit.create_model, "test_vit", **SIZE, **kwargs
    )


@pytest.mark.parametrize("key", ["num_classes", "in_chans", "depth", "embed_dim", "num_heads"])
@pytest.mark.parametrize("number", [-1, "5", 2.0, True, math.nan, [3]])
def test_numbers_of_parts_that_cannot_be(key: str, number: Any) -> None:
    refuse(f"{key}=.*: a whole number, at least", dynavit.create_model, "test_vit", **{**SIZE, key: number})
    if key != "num_classes":  # 0 makes a model without a head
        refuse(f"{key}=0: a whole number, at least 1", dynavit.create_model, "test_vit", **{**SIZE, key: 0})


@pytest.mark.parametrize("rate", [-0.1, 1.0, "0.1", True, math.nan])
def test_drop_rates_that_are_none(rate: Any) -> None:
    for key in ("drop_rate", "drop_path_rate"):
        refuse(rf"{key}=.*\[0, 1\)", dynavit.create_model, "test_vit", **{**SIZE, key: rate})


@pytest.mark.parametrize("number", [-1, None, "5", 2.0, True, 10**15])
def test_another_head_that_cannot_be(number: Any) -> None:
    model = dynavit.create_model("test_vit", num_classes=2, **SIZE)
    model.metadata = {"class_names": ["a", "b"]}
    refuse("num_classes=", model.reset_classifier, number)
    assert model.num_classes == 2
    assert model.metadata == {"class_names": ["a", "b"]}


def test_even_one_block_has_a_default_stage() -> None:
    assert dynavit.create_model("test_vit", depth=1).stages == (0,)
    assert dynavit.create_model("test_vit", depth=1, stages=()).stages == ()


@pytest.mark.parametrize("stages", [3, "36", [1.0], [True], [None], ["x"], [[1]], [2**70], (4, 2)])
def test_stages_that_are_no_blocks(stages: Any) -> None:
    refuse("stages=", dynavit.create_model, "test_vit", stages=stages, **SIZE)


@pytest.mark.parametrize("part", ["selector", "scorer", "reducer"])
@pytest.mark.parametrize("value", [3, {}, {"name": 3}, {"name": None}, {"name": [1]}, {1: 2, "name": "drop"}, ["x"]])
def test_parts_that_have_no_name(part: str, value: Any) -> None:
    refuse(f"{part}=.*give a name", dynavit.create_model, "test_vit", **{part: value}, **SIZE)


@pytest.mark.parametrize("number", [10**12, 10**19, 10**30, "x", 1, True])
def test_identities_that_no_memory_holds(number: Any) -> None:
    refuse(f"num_identities={number!r}", dynavit.create_model, "test_vit", num_identities=number, **SIZE)


@pytest.mark.parametrize("side", [{"cameras": 10**12}, {"cameras": 2, "scale": "x"}, {"cameras": 2, "scale": math.nan}])
def test_cameras_that_cannot_be(side: dict[str, Any]) -> None:
    refuse("side=", dynavit.create_model, "test_vit", num_identities=5, side=side, **SIZE)


@pytest.mark.parametrize(
    ("asked", "known", "meant"),
    [
        (
            "DeiT_small",
            ["nest_small", "deit_small_patch16_224", "deit_small_distilled_patch16_224"],
            "deit_small_patch16",
        ),
        ("TopK", ["topk", "top", "soft_topk"], "topk"),
        ("topk_", ["topk", "soft_topk"], "topk"),
        (None, ["none", "topk"], "none"),
        ("zzzzz", ["topk"], ""),
    ],
)
def test_the_nearest_name_has_the_same_letters(asked: Any, known: list[str], meant: str) -> None:
    assert did_you_mean(asked, known).startswith(f" Did you mean '{meant}" if meant else "")
    assert bool(did_you_mean(asked, known)) == bool(meant)


def test_timm_names_are_found_in_any_letters() -> None:
    refuse("Did you mean 'deit_small_patch16_224'", dynavit.create_model, "DeiT_small")


@pytest.mark.parametrize(
    "option",
    [
        *({"num_identities": 5}, {"side": {"cameras": 2}}, {"spectra": 2}),
        *({"embedding": "before"}, {"architecture": "test_vit"}, {"model_kwargs": {}}),
    ],
)
def test_what_a_model_has_already_is_not_given_to_it_again(option: dict[str, Any]) -> None:
    refuse("this one is made already", dynavit.prune, dynavit.create_model("test_vit", **SIZE), **option)
