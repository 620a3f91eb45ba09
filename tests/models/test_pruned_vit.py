"""PrunedViT as timm's users meet it: heads, image sizes, optimisers, copies, counts, export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import dynavit
from dynavit import InputError, PrunedViT
from dynavit.adapters import VisionTransformerAdapter, create_adapter
from dynavit.functional import num_keep
from dynavit.models import BNNeck
from dynavit.selectors import create_selector, list_selectors

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("execution", ["mask", "gather"])
def test_features_and_head_make_the_forward(
    family: str, training: bool, execution: str, model_of: Model, images_for: Images
) -> None:
    model = model_of(family).train(training)
    model.execution = execution  # type: ignore[assignment]
    images = images_for(model)
    torch.manual_seed(0)  # probes are drawn
    x, trace = model.forward_features(images, return_trace=True)
    torch.manual_seed(0)
    logits = model(images)
    assert torch.equal(model.forward_head(x, weight=trace.weight), logits)
    pooled = model.forward_head(x, pre_logits=True, weight=trace.weight)
    assert pooled.shape == (3, model.num_features)
    if family != "deit_distilled":  # whose two heads are averaged
        assert torch.equal(model.backbone.head(pooled), logits)


def test_head_refuses_masked_tokens_without_their_mask(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family)
    images = images_for(model)
    pools = model.backbone.global_pool != "token"
    for training, execution in ((True, "auto"), (False, "mask")):
        model.train(training)
        model.execution = execution  # type: ignore[assignment]
        torch.manual_seed(0)  # probes are drawn
        x = model.forward_features(images)
        torch.manual_seed(0)
        if pools:
            with pytest.raises(InputError, match=r"forward_head\(x, weight=trace.weight\)"):
                model.forward_head(x)
        else:
            assert torch.equal(model.forward_head(x), model(images))
    # nothing is masked where tokens are removed, nor where there is nothing to prune
    model.execution = "auto"
    assert torch.equal(model.forward_head(model.forward_features(images)), model(images))
    model.execution = "mask"
    model.set_keep_ratio(1.0)
    assert torch.equal(model.forward_head(model.forward_features(images)), model(images))


def test_head_refuses_images_of_different_lengths_without_their_weight(model_of: Model, images_for: Images) -> None:
    model = model_of("gap", selector="ste").train()
    model.scorers.requires_grad_(False)  # so that no mask carries a gradient, and yet the shorter ones are padded
    model.execution = "gather"
    x = model.forward_features(images_for(model))
    with pytest.raises(InputError, match=r"forward_head\(x, weight=trace.weight\)"):
        model.forward_head(x)


@torch.no_grad()
def test_dynamic_image_size(model_of: Model) -> None:
    model = model_of("vit", dynamic_img_size=True)
    for height, width in ((64, 96), (96, 96), (48, 80)):
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        logits, trace = model(images, return_trace=True)
        n = height // 16 * (width // 16)
        assert trace.stages[0].kept.shape == (2, n)
        assert [kept.shape[1] for kept in trace.kept] == [num_keep(n, r) for r in model.keep_ratios]
        model.execution = "mask"
        torch.testing.assert_close(model(images), logits, atol=1e-4, rtol=1e-4)
        model.execution = "auto"


@torch.no_grad()
def test_set_input_size(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family)
    if family == "naflex":
        with pytest.raises(InputError, match="takes images of any size"):
            model.set_input_size(img_size=(64, 64))
        return
    patch = model.adapter.patch_size[0]
    model.set_input_size(img_size=(3 * patch, 7 * patch))
    assert model.adapter.grid_size == (3, 7)
    images = images_for(model)
    logits, trace = model(images, return_trace=True)
    assert trace.stages[0].kept.shape == (3, 21)
    model.execution = "mask"
    torch.testing.assert_close(model(images), logits, atol=1e-4, rtol=1e-4)
    model.set_keep_ratio(1.0)
    assert torch.equal(model(images), model.backbone(images))


def test_reset_classifier(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family)
    model.reset_classifier(4)
    assert model(images_for(model)).shape == (3, 4)
    assert model.num_classes == 4
    classifier = model.get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    assert all(head.out_features == 4 for head in heads)
    model.reset_classifier(0)
    assert model(images_for(model)).shape == (3, 48)


def test_what_timm_tells_of_a_model(family: str, model_of: Model) -> None:
    model = model_of(family)
    assert model.embed_dim == model.num_features == 48
    assert model.num_classes == 7
    assert model.num_prefix_tokens == model.backbone.num_prefix_tokens
    assert model.pretrained_cfg is model.backbone.pretrained_cfg
    config = timm.data.resolve_model_data_config(model)
    assert config == timm.data.resolve_model_data_config(model.backbone)


def layer_groups(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate scale and weight decay of each parameter, as timm groups them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    return {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_layer_decay_treats_the_backbone_as_timm_does(family: str, model_of: Model) -> None:
    model = model_of(family)
    expected = layer_groups(model.backbone)
    found = layer_groups(model)
    assert {k.removeprefix("backbone."): v for k, v in found.items() if "backbone" in k} == expected
    assert len({scale for scale, _ in expected.values()}) == 8  # embedding, 6 blocks, head
    scorers = {name: value for name, value in found.items() if name.startswith("scorers.")}
    assert len(scorers) == len(list(model.scorers.parameters()))
    assert set(scorers.values()) == {(1.0, 0.0)}  # full learning rate, no weight decay


@torch.no_grad()
def test_copies_are_independent(family: str, model_of: Model, images_for: Images) -> None:
    model = model_of(family)
    images = images_for(model)
    twin = copy.deepcopy(model)
    expected = model(images)
    assert torch.equal(twin(images), expected)
    assert twin.adapter.backbone is twin.backbone is not model.backbone
    for parameter in model.parameters():
        parameter.mul_(0.5)
    twin_logits = twin(images)
    assert torch.equal(twin_logits, expected)
    assert not torch.equal(model(images), expected)
    twin.set_keep_ratio(0.3)
    twin.execution = "mask"
    assert model.keep_ratios == (0.7, 0.49, 0.343)
    assert model.execution == "auto"


NOISY = [name for name in list_selectors() if create_selector(name).stochastic]


@pytest.mark.parametrize("selector", NOISY)
def test_training_a_copy_draws_no_noise_in_the_original(selector: str, model_of: Model, images_for: Images) -> None:
    model = model_of("vit", depth=2, stages=(1,), selector=selector)
    images = images_for(model)
    variant = model.at_ratio(0.5).train()
    assert (variant.training, model.training) == (True, False)
    first, again = (model(images, return_trace=True)[0] for _ in range(2))  # the way that calls the selector
    assert torch.equal(first, again)


def test_attributes_of_a_copy_are_its_own(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", depth=2, stages=(1,))
    model.metadata = {"preprocessing": {"mean": [0.5]}}
    images, names = images_for(model), dict(model.named_modules())
    expected = model(images)
    for variant in (model.at_ratio(0.5), copy.copy(model)):
        variant.neck = BNNeck(model.num_features, 5)
        variant.scorers = nn.ModuleList()
        variant.metadata["preprocessing"]["mean"][0] = 0.1
        variant.scorer_config["name"] = "linear"
        variant.register_buffer("extra", torch.zeros(1))
        assert variant.backbone is model.backbone
        assert variant.num_classes == 5 != model.num_classes
    assert dict(model.named_modules()) == names
    assert model.metadata == {"preprocessing": {"mean": [0.5]}}
    assert model.scorer_config == {"name": "mlp"}
    assert "extra" not in model.state_dict()
    assert torch.equal(model(images), expected)


def test_prune_shares_and_does_not_edit(family: str, backbone_of: Callable[..., nn.Module], images_for: Images) -> None:
    backbone = backbone_of(family).eval()
    images = images_for(backbone)
    before = backbone(images)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    names = set(vars(backbone))
    model = dynavit.prune(backbone, keep_ratio=0.5)
    model(images)
    assert model.backbone is backbone
    assert not model.training
    assert model.stages == (0, 2)  # the first, and a third of 6
    assert set(vars(backbone)) == names
    assert torch.equal(backbone(images), before)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert not any(module._forward_hooks for module in backbone.modules())
    assert dynavit.prune(backbone.train()).training


# Counts in place of ratios


@torch.no_grad()
@pytest.mark.parametrize("execution", ["mask", "gather"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("ratio", [0.7, 1.0])
def test_keep_counts_replace_the_ratios(
    execution: str, training: bool, ratio: float, model_of: Model, images_for: Images
) -> None:
    model = model_of("vit", keep_ratio=ratio).train(training)
    model.execution = execution  # type: ignore[assignment]
    images = images_for(model)
    expected, trace = model(images, return_trace=True, keep_counts=[15, 9, 4])
    assert [count.tolist() for count in trace.counts] == [[15] * 3, [9] * 3, [4] * 3]
    tensors = [torch.tensor(k) for k in (15, 9, 4)]
    torch.testing.assert_close(model(images, keep_counts=tensors), expected, rtol=1e-5, atol=1e-4)  # other probes
    # no stage brings tokens back
    _, trace = model(images, return_trace=True, keep_counts=[9, 15, 4])
    assert [count.tolist() for count in trace.counts] == [[9] * 3, [9] * 3, [4] * 3]


@torch.no_grad()
def test_keep_counts_by_image(model_of: Model, images_for: Images) -> None:
    model = model_of("gap")
    images = images_for(model)
    counts = [torch.tensor([20, 10, 5]), torch.tensor([10, 5, 2]), torch.tensor([5, 2, 1])]
    model.train().execution = "gather"
    trained, trace = model(images, return_trace=True, keep_counts=counts)
    assert all(map(torch.equal, trace.counts, counts))
    model.execution = "mask"
    torch.testing.assert_close(trained, model(images, keep_counts=counts), atol=2e-3, rtol=0)
    model.eval().execution = "gather"
    padded, other = model(images, return_trace=True, keep_counts=counts)
    model.execution = "mask"
    logits, trace = model(images, return_trace=True, keep_counts=counts)
    assert all(map(torch.equal, trace.counts, counts))
    assert all(map(torch.equal, [stage.kept for stage in other.stages], [stage.kept for stage in trace.stages]))
    torch.testing.assert_close(padded, logits, atol=1e-4, rtol=1e-4)
    assert trace.kept[0].tolist()[2][5:] == [-1] * 15
    # each image is as if alone with its own counts, also where the others' tokens are padding
    model.execution = "gather"
    for image in range(3):
        own = [int(count[image]) for count in counts]
        alone = model(images[image : image + 1], keep_counts=own)
        torch.testing.assert_close(alone[0], logits[image], atol=1e-4, rtol=1e-4)


def test_keep_counts_must_match_the_stages(model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    for counts in ([3], [3, 2, 1, 1]):
        with pytest.raises(InputError, match=rf"{len(counts)} keep_counts for 3 stages"):
            model(images_for(model), keep_counts=counts)


@pytest.mark.parametrize(
    "count", [0, -1, 2.0, "2", True, torch.tensor(2.0), torch.tensor([[1], [1]])], ids=lambda count: repr(count)
)
def test_impossible_keep_counts(count: Any, model_of: Model, images_for: Images) -> None:
    model = model_of("gap")
    with pytest.raises(InputError, match=r"^keep_counts=.*whole numbers from 1"):
        model(images_for(model, 2), keep_counts=[count, 1, 1])


def test_ratios_of_one_number_are_powers(model_of: Model) -> None:
    model = model_of("vit", keep_ratio=0.7)
    assert model.keep_ratios == (0.7, 0.49, 0.343)
    model.set_keep_ratio(0.05)
    assert model.keep_ratios == (0.05, 0.003, 0.001)  # to a thousandth, never 0
    model.set_keep_ratio([0.9, 0.9, 0.5])
    assert model.keep_ratios == (0.9, 0.9, 0.5)


@pytest.mark.parametrize(
    "ratio", [0, -0.5, 1.01, float("nan"), [0.5, 0.6, 0.7], [0.5], [0.5, 0.4, 0.0], [1.2, 1, 1], []]
)
def test_impossible_ratios(ratio: Any, model_of: Model) -> None:
    model = model_of("vit")
    with pytest.raises(InputError, match="ratio"):
        model.set_keep_ratio(ratio)
    assert model.keep_ratios == (0.7, 0.49, 0.343)


@pytest.mark.parametrize("stages", [(6,), (-1,), (3, 1), (2, 2), (1.5,), 3, "13", ("a",), (None,)])
def test_impossible_stages(stages: Any, model_of: Model) -> None:
    with pytest.raises(InputError, match="stages="):
        model_of("vit", stages=stages)


def test_every_block_can_be_a_stage(model_of: Model, images_for: Images) -> None:
    model = model_of("vit", stages=range(6), keep_ratio=0.8)
    _, trace = model(images_for(model), return_trace=True)
    assert len(trace.kept) == len(model.scorers) == 6
    assert trace.kept[-1].shape[1] == num_keep(24, 0.8**6)


# Backbones


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", {}),
        ("vit_relpos_small_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    ],
)
def test_other_backbones_are_refused_with_a_list(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"cannot be pruned.*supports.*VisionTransformer.*register_adapter"):
        dynavit.create_model(name, **kwargs)


def test_blocks_that_cannot_be_masked_are_refused(model_of: Model) -> None:
    small = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
    with pytest.raises(TypeError, match=r"blocks\[0\] is a ParallelThingsBlock.*supported block is .*Block"):
        dynavit.create_model("vit_base_patch16_18x2_224", **small)
    with pytest.raises(TypeError, match=r"blocks\[0\] is a ResPostBlock"):
        model_of("vit", block_fn=timm.models.vision_transformer.ResPostBlock)
    with pytest.raises(TypeError, match="patch_drop_rate"):
        model_of("vit", patch_drop_rate=0.2)
    with pytest.raises(TypeError, match=r"global_pool='max'.*supported: 'token', 'avg', 'map'"):
        model_of("vit", global_pool="max")


def test_subclasses_of_a_supported_class_are_driven_alike() -> None:
    class Own(VisionTransformer):
        """A model that a user derived from timm's."""

    backbone = Own(img_size=32, patch_size=16, embed_dim=24, depth=3, num_heads=2, num_classes=2)
    assert isinstance(create_adapter(backbone), VisionTransformerAdapter)


def test_unknown_architecture() -> None:
    with pytest.raises(InputError, match=r"no model 'vit_tiny_patch16_22'\. Did you mean 'vit_tiny_patch16_224'"):
        dynavit.create_model("vit_tiny_patch16_22")
    with pytest.raises(InputError, match="hf-hub:me/model"):
        dynavit.create_model("me/model")
    with pytest.raises(InputError, match="'ftp:model' is no timm model name"):
        dynavit.create_model("ftp:model")


def test_names_with_a_source_are_left_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """hf-hub: and local-dir: names are no names of timm's own list."""
    asked: list[str] = []
    real = timm.create_model

    def create(name: str, **kwargs: Any) -> nn.Module:
        asked.append(name)
        return real("test_vit")

    monkeypatch.setattr(timm, "create_model", create)
    assert dynavit.create_model("hf-hub:timm/test_vit.r160_in1k").stages
    assert asked == ["hf-hub:timm/test_vit.r160_in1k"]


def test_parts_that_are_no_parts(model_of: Model) -> None:
    with pytest.raises(InputError, match="not both"):
        model_of("vit", keep_ratio=0.5, keep_ratios=(0.5, 0.4, 0.3))
    with pytest.raises(InputError, match="selector=3: give a name"):
        model_of("vit", selector=3)
    with pytest.raises(InputError, match="Did you mean 'topk'"):
        model_of("vit", selector="topkk")
    with pytest.raises(InputError, match=r"unknown reducer 'dropp'\. Did you mean 'drop'"):
        model_of("vit", reducer="dropp")


# Export


def test_torch_export_with_a_dynamic_batch(model_of: Model, images_for: Images) -> None:
    model = model_of("vit")
    exported = torch.export.export(
        model, (images_for(model, 2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    ).module()
    for batch in (1, 3):
        images = images_for(model, batch, seed=batch)
        assert torch.equal(exported(images), model(images))


# What goes together where it is not said


@pytest.mark.parametrize(
    ("given", "scorer", "reducer"),
    [
        ({}, "distinctness", "merge_nearest"),
        ({"selector": "topk"}, "mlp", "merge_nearest"),
        ({"selector": "ste"}, "mlp", "merge_nearest"),
        ({"selector": "score_function"}, "mlp", "merge_nearest"),
        ({"selector": "random"}, "distinctness", "merge_nearest"),
        ({"selector": "gumbel_sigmoid"}, "mlp", "drop"),  # removes nothing while training
        ({"selector": "soft_topk", "scorer": "linear"}, "linear", "drop"),
        ({"scorer": "mlp"}, "mlp", "merge_nearest"),
        ({"reducer": "fuse"}, "distinctness", "fuse"),
    ],
)
def test_parts_that_are_not_given_fit_those_that_are(given: dict[str, str], scorer: str, reducer: str) -> None:
    torch.manual_seed(0)
    model = dynavit.create_model("test_vit", **given).train()
    assert ({part.name for part in model.scorers}, model.reducer.name) == ({scorer}, reducer)
    logits = model(torch.randn(2, 3, 160, 160))
    logits.square().sum().backward()
    learns = model.selector.trains_scorer and scorer == "mlp"
    for predictor in model.scorers if learns else ():
        weights = [parameter for parameter in predictor.parameters() if parameter.ndim > 1]
        assert all(weight.grad is not None and weight.grad.any() for weight in weights)
