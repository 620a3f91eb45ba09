"""Comparing methods at equal cost: budgets, the fitted classifier, the rows and the tool."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import ImageFolder

import dynavit
from dynavit.cli import main
from dynavit.cost import closed_form_macs, tokens_per_stage
from dynavit.cost.macs import mean_macs
from dynavit.data.transforms import create_transforms
from dynavit.errors import InputError
from dynavit.evaluation import speed
from dynavit.evaluation.comparison import SMALLER, evaluate_methods
from dynavit.evaluation.dense_classifier import DenseClassifier, open_dense_classifier
from dynavit.evaluation.equal_macs import (
    calibrate_to_budget,
    image_counts,
    largest_keep_ratio,
    plain_dropping_macs,
)
from dynavit.evaluation.linear_head import fit_linear_head, set_linear_head
from dynavit.evaluation.methods import Method, read_methods

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "configs/methods").glob("*.yaml"))
LEARNED = {"anchored", "dtps", "dynamicvit", "predictor_topk", "seps"}
FREE = sorted({path.stem for path in PATHS} - LEARNED)
NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}  # 64 patches
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def methods() -> dict[str, Method]:
    return {method.name: method for method in read_methods(PATHS)}


@pytest.fixture(scope="module")
def deep() -> dynavit.PrunedViT:
    torch.manual_seed(0)
    return dynavit.create_model(NAME, stages=(), num_classes=3, **{**SMALL, "depth": 12}).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict without a classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    backbone = dynavit.create_model(NAME, stages=(), num_classes=0, **SMALL).backbone
    save_file({key: value.contiguous() for key, value in backbone.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved dense model for the pictures' classes: right on some of them, and unsure enough to mind lost tokens."""
    torch.manual_seed(5)
    model = dynavit.create_model(NAME, stages=(), num_classes=3, **SMALL)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    preprocessing = {"image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    model.metadata = {
        "class_names": ["blue", "green", "red"],
        "preprocessing": {**preprocessing, "crop_pct": 1.0, "crop_mode": "center"},
    }
    path = tmp_path_factory.mktemp("dense")
    model.save_pretrained(path)
    return path


@pytest.fixture
def classifier(folder: Path, pictures: Path, tmp_path: Path) -> DenseClassifier:
    return open_dense_classifier(str(folder), CPU, tmp_path, root=str(pictures))


# --- budgets


def test_the_budget_is_that_of_dropping_for_free() -> None:
    deit = dynavit.create_model("deit_small_patch16_224", stages=())
    assert plain_dropping_macs(deit, 0.7) / 1e9 == pytest.approx(2.8780, abs=1e-4)
    assert plain_dropping_macs(deit, 1.0) == closed_form_macs(deit)


@pytest.mark.parametrize("name", FREE)
def test_each_method_uses_its_budget_up(name: str, methods: dict[str, Method], deep: dynavit.PrunedViT) -> None:
    """Not above it, and one thousandth more, which is at most one token a stage, is."""
    model = methods[name].apply(deep)
    for budget_ratio in (0.9, 0.8, 0.7):
        budget = plain_dropping_macs(deep, budget_ratio)
        ratio = largest_keep_ratio(model, budget)
        more = model.at_ratio(ratio + 0.001)
        assert closed_form_macs(model, ratio) <= budget < closed_form_macs(more)
        steps = zip(tokens_per_stage(model.at_ratio(ratio)), tokens_per_stage(more), strict=True)
        assert all(0 <= after - before <= 1 for before, after in steps)


def test_bisection_finds_what_trying_all_ratios_finds(methods: dict[str, Method], deep: dynavit.PrunedViT) -> None:
    model = methods["evit_fuse"].apply(deep)
    costs = {number: closed_form_macs(model, number / 1000) for number in range(1, 1001)}
    for budget in torch.linspace(min(costs.values()) + 1, max(costs.values()), 7).tolist():
        best = max(number for number, cost in costs.items() if cost <= budget)
        assert largest_keep_ratio(model, budget) == best / 1000


def test_a_budget_out_of_reach_is_refused(methods: dict[str, Method], deep: dynavit.PrunedViT) -> None:
    dense = closed_form_macs(deep)
    with pytest.raises(InputError, match=r"at its lowest keep ratio it still costs 0\.0"):
        largest_keep_ratio(methods["evit"].apply(deep), 0.1 * dense)
    once = Method("merge", (6,), 12, {"reducer": "merge", "placement": "before", "count_rule": "linear"}).apply(deep)
    with pytest.raises(InputError, match="merging at most halves"):
        largest_keep_ratio(once, 0.7 * dense)
    assert largest_keep_ratio(once, 0.95 * dense) > 0.5


def test_thresholds_meet_the_budget_on_average(methods: dict[str, Method], deep: dynavit.PrunedViT) -> None:
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[::3] *= 0.1
    model = methods["adaptive"].apply(deep).at_ratio(1.0)
    budget = plain_dropping_macs(deep, 0.6)
    ratio = calibrate_to_budget(model, budget, lambda: images.split(10))
    counts = image_counts(model, images.split(7))  # another division into batches
    alone = [mean_macs(model, image_counts(model, [image[None]])) for image in images]
    assert counts.shape == (24, 3)
    assert len(counts.unique(dim=0)) > 1
    assert sum(alone) / 24 == pytest.approx(mean_macs(model, counts))
    assert 0.98 * budget < mean_macs(model, counts) <= budget
    assert ratio == pytest.approx(float(counts[:, 0].double().mean()) / 64, abs=0.02)
    assert model.thresholds is not None
    assert calibrate_to_budget(model, closed_form_macs(deep), lambda: images.split(10)) == 1.0
    assert model.thresholds is None


# --- methods applied to backbones


def test_stages_go_with_the_depth() -> None:
    assert Method("all", tuple(range(12)), 12, {}).stages_in(24) == tuple(range(24))
    assert Method("early", tuple(range(9)), 12, {}).stages_in(4) == (0, 1, 2)
    assert Method("some", (3, 6, 9), 12, {}).stages_in(6) == (1, 3, 4)
    assert Method("unknown", (3, 6, 9), None, {}).stages_in(24) == (3, 6, 9)
    assert Method("default", None, None, {}).stages_in(24) is None
    with pytest.raises(InputError, match="too many for 2 blocks"):
        Method("some", (3, 6, 9), 12, {}).stages_in(2)


def test_a_configuration_is_read_for_its_tokens_alone(tmp_path: Path, deep: dynavit.PrunedViT) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: {architecture: vit_large_patch16_224, stages: [6, 12], scorer: {name: random, seed: 3}}\n"
        "data: {root: nowhere}\nloss: {token_distillation_weight: 1.0}\n"
    )
    (method,) = read_methods([path])
    assert (method.name, method.stages, method.depth, method.adaptive) == ("mine", (6, 12), 24, False)
    model = method.apply(deep)
    assert model.stages == (3, 6)
    assert [scorer.seed for scorer in model.scorers] == [3, 3]
    assert model.backbone is deep.backbone


def test_what_has_to_be_trained_is_left_out(methods: dict[str, Method], deep: dynavit.PrunedViT) -> None:
    for name in LEARNED:
        with pytest.raises(InputError, match=r"scorer, (mlp|anchored|guided), has to be trained"):
            methods[name].apply(deep)
    aggregate = Method("aggregate", None, None, {"scorer": "key_norm", "reducer": {"name": "aggregate", "tokens": 4}})
    with pytest.raises(InputError, match="reducer, aggregate, has to be trained"):
        aggregate.apply(deep)
    assert Method("blind", None, None, {"selector": "random"}).apply(deep)  # reads no scores of its untrained predictor


# --- the classifier


def test_separable_classes_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    features = 3 * F.one_hot(labels, 8) + 0.3 * torch.randn(90, 8, generator=generator)
    weight, bias = fit_linear_head(features, labels, 3)
    assert torch.equal((features @ weight.T + bias).argmax(dim=1), labels)
    assert torch.equal(fit_linear_head(features, labels, 3)[0], weight)


def test_the_fit_is_the_optimum() -> None:
    """Newton's method in fp64 on the same objective; correlated features of unlike scales, one of them constant."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    x = x * torch.tensor([1.0, 100.0, 0.01, 1.0]) + torch.tensor([0.0, 5.0, 1.0, -3.0])
    x[:, 3] = 7.0
    labels = (x[:, 0] + 0.01 * x[:, 1] + torch.randn(60, generator=generator) > 0).long() + (x[:, 2] > 1).long()
    weight, bias = fit_linear_head(x, labels, 3, l2=0.01)

    deviation = x.double().std(dim=0)
    deviation[3] = 1.0
    z = (x.double() - x.double().mean(dim=0)) / deviation

    def objective(parameters: Tensor) -> Tensor:
        w, b = parameters[:12].view(3, 4), parameters[12:]
        return F.cross_entropy(z @ w.T + b, labels) + 0.005 * w.square().sum()

    parameters = torch.zeros(15, dtype=torch.float64)
    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(objective, parameters)
        hessian = torch.autograd.functional.hessian(objective, parameters)
        parameters = parameters - torch.linalg.pinv(hessian) @ gradient  # the biases share a direction that is free
    expected = (z @ parameters[:12].view(3, 4).T + parameters[12:]).softmax(dim=1)
    found = (x.double() @ weight.double().T + bias.double()).softmax(dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert float((found - expected[torch.randperm(60, generator=generator)]).abs().max()) > 0.1  # not a loose bound


def test_impossible_fits_are_refused() -> None:
    with pytest.raises(InputError, match="all of one class"):
        fit_linear_head(torch.randn(4, 2), torch.zeros(4, dtype=torch.long), 3)
    with pytest.raises(InputError, match="not finite"):
        fit_linear_head(torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]), 2)


@pytest.mark.parametrize("family", ["vit", "deit_distilled", "siglip", "gap", "eva02", "beit"])
def test_the_classifier_reads_what_it_was_fitted_on(
    family: str, model_of: Callable[..., dynavit.PrunedViT], images_for: Callable[..., Tensor]
) -> None:
    model = model_of(family, stages=())
    weight, bias = torch.randn(5, model.num_features), torch.randn(5)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images_for(model)), pre_logits=True)
        set_linear_head(model.backbone, weight, bias)
        torch.testing.assert_close(model(images_for(model)), features @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_a_fitted_classifier_is_kept(weights: Path, pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def opened(**kwargs: Any) -> DenseClassifier:
        options = {"architecture": NAME, "root": str(pictures), **kwargs}
        return open_dense_classifier(str(weights), CPU, tmp_path, log=said.append, **options)

    with pytest.raises(InputError, match="does not fit the architecture"):
        opened()  # patches of another size
    small = dynavit.create_model(NAME, stages=(), num_classes=0, img_size=32)
    path = tmp_path / "small.safetensors"
    save_file({key: value.contiguous() for key, value in small.backbone.state_dict().items()}, path)
    weights = path
    first = opened(img_size=32)
    assert "fitted one by logistic regression on its features of 24 training images" in said[-1]
    again = opened(img_size=32)
    assert "again" in said[-1]
    assert len(said) == 2
    image = first.data.validation[0][0][None]
    assert torch.equal(first.model(image), again.model(image))
    assert torch.equal(dynavit.load(tmp_path / "dense")(image), first.model(image))
    assert dynavit.load(tmp_path / "dense").metadata["class_names"] == ["blue", "green", "red"]

    opened(img_size=32, limit=10)
    assert "of another backbone or other images (linear_head)" in said[-2]
    assert "10 training images" in said[-1]
    (tmp_path / "dense/model.safetensors").write_bytes(b"damaged")
    opened(img_size=32, limit=10)
    assert "cannot be used, so a classifier is fitted again" in said[-2]


def test_a_model_that_knows_the_classes_keeps_its_classifier(
    classifier: DenseClassifier, folder: Path, tmp_path: Path
) -> None:
    image = classifier.data.validation[0][0][None]
    assert torch.equal(classifier.model(image), dynavit.load(folder)(image))
    assert not (tmp_path / "dense").exists()


def test_the_order_is_shuffled_and_always_the_same(folder: Path, pictures: Path, tmp_path: Path) -> None:
    whole = open_dense_classifier(str(folder), CPU, tmp_path, root=str(pictures))
    some = open_dense_classifier(str(folder), CPU, tmp_path, root=str(pictures), limit=5)
    order = [int(whole.data.train[number][2]) for number in range(24)]
    assert sorted(order) == list(range(24))
    assert order != sorted(order)
    assert [int(some.data.train[number][2]) for number in range(len(some.data.train))] == order[:5]
    assert len(some.data.validation) == 5


# --- rows


def test_the_dense_row_is_the_timm_model(
    classifier: DenseClassifier, folder: Path, pictures: Path, methods: dict[str, Method]
) -> None:
    rows = evaluate_methods(classifier, [methods["random"]], [0.5], rounds=0)
    model = dynavit.load(folder)
    transform = create_transforms(**model.metadata["preprocessing"])[1]
    right = [
        int(model.backbone(transform(image)[None]).argmax()) == label for image, label in ImageFolder(pictures / "val")
    ]
    assert rows[0]["method"] == "dense"
    assert rows[0]["top1"] == pytest.approx(100 * sum(right) / 12)
    assert rows[0]["gmacs"] == closed_form_macs(model) / 1e9
    assert 0 < rows[0]["top1"] < 100


def test_at_ratio_1_every_method_is_the_dense_model(classifier: DenseClassifier, methods: dict[str, Method]) -> None:
    said: list[str] = []
    rows = evaluate_methods(classifier, list(methods.values()), [1.0], rounds=0, log=said.append)
    assert {row["method"] for row in rows} == {"dense", *FREE}
    assert {line.split()[0] for line in said} == LEARNED
    for row in rows[1:]:
        assert row["keep_ratio"] == 1.0
        assert row["top1"] == rows[0]["top1"]
        assert row["gmacs"] == rows[0]["gmacs"]
        assert (row["delta_top1"], row["delta_top1_low"], row["delta_top1_high"]) == (0, 0, 0)


def test_rows_say_what_the_models_do(classifier: DenseClassifier, methods: dict[str, Method]) -> None:
    chosen = [methods[name] for name in ("evit_fuse", "tome", "adaptive", "random")]
    rows = evaluate_methods(classifier, chosen, [0.8, 0.9], rounds=0, batch_size=5)
    assert [row.get("budget_ratio") for row in rows] == [None, *[0.9] * 5, *[0.8] * 5]
    images = torch.stack([classifier.data.validation[number][0] for number in range(12)])
    labels = torch.tensor([classifier.data.validation[number][1] for number in range(12)])
    assert len({row["top1"] for row in rows}) > 1
    for group in (rows[1:6], rows[6:]):
        assert [row["top1"] for row in group] == sorted((row["top1"] for row in group), reverse=True)
    for row in rows[1:]:
        if row["method"] == "adaptive":
            assert row["tokens_p95"] >= row["tokens"][-1]
            continue
        assert row["gmacs"] <= row["budget_gmacs"]
        seen = images
        if row["method"] == SMALLER:
            rival, _, data = classifier.smaller(row["image_size"][0])
            seen, model = torch.stack([data.validation[number][0] for number in range(12)]), rival.model
            assert seen.shape[-1] == row["image_size"][0] < images.shape[-1]
        else:
            model = methods[row["method"]].apply(classifier.model)
            model.set_keep_ratio(row["keep_ratio"])
        with torch.no_grad():
            right = model(seen).argmax(dim=1) == labels
        assert row["top1"] == pytest.approx(100 * float(right.double().mean()))
        assert row["tokens"] == tokens_per_stage(model)
        assert row["delta_top1"] == pytest.approx(row["top1"] - rows[0]["top1"])
        assert row["delta_top1_low"] <= row["delta_top1"] <= row["delta_top1_high"]


def test_smaller_images_get_a_classifier_of_their_own_where_one_was_fitted(classifier: DenseClassifier) -> None:
    heads = [
        replace(classifier, fitted=fitted).smaller(classifier.model.adapter.image_size[0] // 2)[0].model.backbone.head
        for fitted in (False, True)
    ]
    assert heads[0].weight is classifier.model.backbone.head.weight
    assert not torch.equal(heads[1].weight, heads[0].weight)


def test_what_cannot_be_is_left_out_with_a_reason(
    classifier: DenseClassifier, methods: dict[str, Method], model_of: Callable[..., dynavit.PrunedViT]
) -> None:
    said: list[str] = []
    rows = evaluate_methods(classifier, [methods["random"], methods["tome"]], [0.5, 0.05], rounds=0, log=said.append)
    assert any(line.startswith("tome is left out at 0.0") for line in said)
    assert "random" in {row["method"] for row in rows}
    pooled = replace(classifier, model=model_of("gap", stages=(), depth=12))
    with pytest.raises(InputError, match="every method is left out"):
        evaluate_methods(pooled, [methods["evit"]], [0.5], rounds=0, log=said.append)
    assert "backbone has none" in said[-1]


def test_speed_is_measured_in_turns_on_images_that_differ(
    classifier: DenseClassifier, methods: dict[str, Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[Tensor]]] = []

    def fake(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        assert rounds == 3
        assert torch.is_inference_mode_enabled()
        shown: list[list[Tensor]] = []
        hook = classifier.model.backbone.patch_embed.register_forward_pre_hook(
            lambda module, inputs: shown[-1].append(inputs[0])
        )
        for call in calls.values():
            shown.append([])
            call()
        hook.remove()
        seen.append(shown)
        return {name: [8.0 / (int(name) + 1)] * 3 for name in calls}

    monkeypatch.setattr(speed, "measure", fake)
    chosen = [methods["adaptive"], methods["random"]]
    rows = evaluate_methods(classifier, chosen, [0.9, 0.5], rounds=3, batch_size=4)
    assert [len(shown) for shown in seen] == [4, 4]  # dense, two methods and smaller images at each budget
    for shown in seen:
        assert shown.pop() == []  # these have a stem of their own
        first = torch.cat(shown[0])
        assert [len(images) for images in shown[0]] == [4, 4, 4, 4]
        assert all(torch.equal(torch.cat(images), first) for images in shown)
        assert len({image.numpy().tobytes() for image in first}) == 12  # all there are, one of them twice or more
    speeds = {row["method"]: row["throughput"]["4"] for row in rows if row.get("budget_ratio") in (None, 0.5)}
    assert speeds["dense"]["images_per_second"] == pytest.approx(16 / 8)
    assert {round(found["speedup"], 6) for found in speeds.values()} == {1.0, 2.0, 3.0, 4.0}


# --- the tool


def test_the_tool_writes_what_it_prints(
    folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [str(ROOT / f"configs/methods/{name}.yaml") for name in ("tome", "adaptive", "dynamicvit")]
    arguments = ["methods", "--checkpoint", str(folder), "--root", str(pictures), "--configs", *configs]
    assert main([*arguments, "--keep-ratios", "0.9,0.8", "--no-timing", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "dynamicvit is left out: its scorer, mlp, has to be trained first." in shown
    written = json.loads((tmp_path / "methods.json").read_text())
    assert len(written["rows"]) == 7
    assert "dynamicvit" in written["left_out"]
    with (tmp_path / "methods.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in written["rows"]]
    markdown = (tmp_path / "methods.md").read_text()
    names = ("dense ", "tome ", "adaptive ", "smaller images ")
    shown_rows = [line for line in shown.splitlines() if line.startswith(names)]
    for row, line in zip(written["rows"], shown_rows, strict=True):
        assert line.startswith(row["method"])
        assert f"{row['top1']:.2f}" in line
        assert f"| {row['method']} | " in markdown
    assert markdown.count("as dropping at keep ratio") == shown.count("as dropping at keep ratio") == 2
    assert "(p95 " in shown
    assert (tmp_path / "methods.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "nowhere"], "no such folder or state dict, and no timm model"),
        (["--checkpoint", "vit_tiny_patch16_225", "--root", "x"], "Did you mean 'vit_tiny_patch16_224'?"),
        (["--checkpoint", "vit_tiny_patch16_224"], "--root is missing"),
        (["--checkpoint", "FOLDER"], "--root is missing: .* has no config.yaml"),
        (["--checkpoint", "FOLDER", "--root", "nowhere"], "root=nowhere does not exist"),
        (["--checkpoint", "FOLDER", "--root", "PICTURES", "--img-size", "64"], "--img-size 64: .* leave it out"),
        (["--checkpoint", "FOLDER", "--root", "PICTURES", "--architecture", "deit_small_patch16_224"], "holds a vit_"),
        (["--checkpoint", "FILE", "--root", "PICTURES"], "needs model.architecture"),
        (["--checkpoint", "FOLDER", "--root", "PICTURES", "--limit", "1"], "--limit 1: at least 2"),
        (["--checkpoint", "FOLDER", "--root", "PICTURES", "--keep-ratios", "1.5"], r"keep ratios \[1.5\]"),
        (["--checkpoint", "FOLDER", "--root", "PICTURES", "--batch-size", "0"], "--batch-size=0: give a whole number"),
        (["--checkpoint", "FOLDER", "--configs", "nowhere.yaml"], "nowhere.yaml is no file"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    arguments: list[str], said: str, folder: Path, weights: Path, pictures: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"FOLDER": str(folder), "FILE": str(weights), "PICTURES": str(pictures)}
    words = [places.get(word, word) for word in arguments]
    if "--configs" not in words:
        words += ["--configs", str(PATHS[0])]
    assert main(["methods", *words, "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line), line


def test_names_that_would_meet_in_the_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dense.yaml").write_text("model: {architecture: vit_tiny_patch16_224}\n")
    for paths in ([PATHS[0], PATHS[0]], [tmp_path / "dense.yaml"]):
        with pytest.raises(InputError, match="rename"):
            read_methods(paths)
    with pytest.raises(InputError, match="--configs"):
        read_methods([])


@pytest.mark.slow
def test_a_newcomer_sees_the_whole_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    output = str(tmp_path)
    arguments = ["methods", "--checkpoint", "checkpoints/quickstart-dense", "--output", output, "--limit", "100"]
    assert main([*arguments, "--rounds", "1"]) == 0
    rows = json.loads((tmp_path / "methods.json").read_text())["rows"]
    accuracy = {(row["method"], row.get("budget_ratio")): row["top1"] for row in rows}
    assert {name for name, _ in accuracy} == {"dense", SMALLER, *FREE}
    assert accuracy["dense", None] >= 97
    for name in ("evit", "evit_fuse", "etps", "class_attention", "attention_received", "adaptive"):
        assert accuracy[name, 0.7] > accuracy["random", 0.7] + 5
    assert all("32" in row["throughput"] for row in rows)
