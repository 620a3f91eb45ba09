"""Re-identification models: the batch-norm neck, what the model returns, saving, and what runs start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import dynavit
from dynavit import InputError, PrunedViT
from dynavit.checkpoints.start import load_backbone, load_reid_start
from dynavit.models.heads import BNNeck, Embedding

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]
NAMES = ["0002", "0007", "0010", "0011", "0012"]


@pytest.fixture
def reid(model_of: Model) -> Callable[..., PrunedViT]:
    """Return a function: family and options to a small re-identification model of five identities."""

    def build(family: str = "vit", **kwargs: Any) -> PrunedViT:
        model = model_of(family, num_classes=0, num_identities=5, **kwargs)
        assert model.neck is not None
        generator = torch.Generator().manual_seed(3)
        model.neck.norm.running_mean.normal_(generator=generator)  # as if it had been trained
        model.neck.norm.running_var.uniform_(0.5, 2, generator=generator)
        return model

    return build


def test_training_gives_the_features_before_and_the_logits_after_the_norm() -> None:
    torch.manual_seed(0)
    neck = BNNeck(6, 4)
    x = 3 + 2 * torch.randn(8, 6)
    output = neck(x)
    assert isinstance(output, Embedding)
    assert torch.equal(output.features, x)
    normal = (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + neck.norm.eps).sqrt()
    torch.testing.assert_close(output.logits, normal @ neck.classifier.weight.T)
    torch.testing.assert_close(neck.norm.running_mean, 0.1 * x.mean(dim=0))


@pytest.mark.parametrize("embedding", ["after", "before"])
def test_evaluation_gives_one_vector_of_length_one(embedding: Any) -> None:
    torch.manual_seed(0)
    neck = BNNeck(6, 4, embedding)
    for _ in range(20):
        neck(3 + 2 * torch.randn(16, 6))
    neck.eval()
    x = torch.randn(5, 6)
    output = neck(x)
    assert isinstance(output, Tensor)
    expected = x
    if embedding == "after":
        expected = (x - neck.norm.running_mean) / (neck.norm.running_var + neck.norm.eps).sqrt()
    torch.testing.assert_close(output, expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(neck(x[:1]), output[:1])  # one image alone is no trouble here


def test_neck_starts_as_published() -> None:
    torch.manual_seed(0)
    neck = BNNeck(256, 500)
    assert neck.classifier.bias is None
    assert neck.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert {name for name, p in neck.named_parameters() if p.requires_grad} == {"norm.weight", "classifier.weight"}
    assert (neck.norm.weight == 1).all()
    assert (neck.norm.bias == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_neck_computes_in_full_precision_under_autocast(training: bool) -> None:
    torch.manual_seed(0)
    neck = BNNeck(6, 4).train(training)
    x = torch.randn(8, 6).bfloat16()
    expected = neck(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        output = neck(x)
    for ours, theirs in zip(output, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    assert neck.bfloat16()(x)[0].dtype == torch.bfloat16  # a model that was cast stays as it was cast


def test_one_image_cannot_be_trained_on(reid: Model, images_for: Images) -> None:
    model = reid().train()
    with pytest.raises(InputError, match=r"one image has no batch statistics.*batch_size"):
        model(images_for(model, 1))
    model(images_for(model, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 1), "num_identities=1: .*at least 2"),
        ((6, True), "num_identities=True"),
        ((6, 2.5), "num_identities=2.5"),
        ((6, 4, "none"), "embedding='none': the feature 'after' or 'before'"),
    ],
)
def test_impossible_necks(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BNNeck(*arguments)


@pytest.mark.parametrize("execution", ["mask", "gather"])
def test_neck_receives_the_pooled_features(family: str, execution: str, reid: Model, images_for: Images) -> None:
    model = reid(family)
    assert model.neck is not None
    model.execution = execution  # type: ignore[assignment]
    images = images_for(model)
    with torch.no_grad():
        x, trace = model.forward_features(images, return_trace=True)
        pooled = model.forward_head(x, pre_logits=True, weight=trace.weight)
        embedding = model(images)
        assert torch.equal(embedding, F.normalize(model.neck.norm(pooled), dim=1))
        assert torch.equal(embedding, model.forward_head(x, weight=trace.weight))
        assert embedding.shape == (3, model.num_features)
        again, trace = model.train()(images, return_trace=True)
    assert isinstance(again, Embedding)
    assert again.logits.shape == (3, 5)
    assert len([stage.kept for stage in trace.stages]) == 3


@torch.no_grad()
def test_executions_agree_on_embeddings(family: str, reid: Model, images_for: Images) -> None:
    model = reid(family)
    images = images_for(model)
    embeddings = []
    for execution in ("mask", "gather"):
        model.execution = execution  # type: ignore[assignment]
        embeddings.append(model(images))
    torch.testing.assert_close(*embeddings, rtol=1e-4, atol=1e-5)
    model.set_keep_ratio(0.2)
    assert not torch.allclose(model(images), embeddings[0], atol=1e-3)  # or the above would mean nothing


def test_a_neck_changes_nothing_before_it(model_of: Model, images_for: Images) -> None:
    plain, model = model_of("vit", num_classes=0), model_of("vit", num_classes=0, num_identities=5)
    model.backbone.load_state_dict(plain.backbone.state_dict())
    model.scorers.load_state_dict(plain.scorers.state_dict())
    images = images_for(plain)
    assert torch.equal(model.forward_features(images), plain.forward_features(images))
    assert plain.neck is None
    assert not any(name.startswith(("neck", "side")) for name in plain.state_dict())


def test_every_trained_parameter_gets_a_gradient(family: str, reid: Model, images_for: Images) -> None:
    """None is left out, which distributed training would refuse."""
    model = reid(family, side={"cameras": 3}).train()
    output = model(images_for(model), torch.tensor([0, 1, 2]))
    (output.features.square().sum() + output.logits.square().sum()).backward()
    assert model.neck is not None
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"neck.norm.bias"}
    # scores whose softmax does not see a shift get none, or next to none, but are part of the graph
    assert [name for name, p in trained.items() if p.grad is None] == []
    for name in ("neck.classifier.weight", "neck.norm.weight", "side.table", "scorers.0.embed.1.weight"):
        assert trained[name].grad is not None
        assert trained[name].grad.abs().max() > 0


def test_conventions_of_timm(reid: Model, images_for: Images) -> None:
    model = reid(side={"cameras": 2})
    assert model.neck is not None
    assert model.num_classes == 5
    assert model.get_classifier() is model.neck.classifier
    assert {"side.table", "backbone.pos_embed"} <= model.no_weight_decay()
    images, cameras = images_for(model), torch.tensor([0, 1, 1])
    before = model(images, cameras)
    model.reset_classifier(9)
    assert torch.equal(model(images, cameras), before)
    assert model.train()(images, cameras).logits.shape == (3, 9)
    model.eval().reset_classifier(9, "avg")
    assert model.backbone.num_classes == 0
    assert not torch.allclose(model(images, cameras), before, atol=1e-3)
    with pytest.raises(InputError, match="num_identities=0"):
        model.reset_classifier(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_identities": 5, "num_classes": 7}, "num_classes=7 and num_identities=5: .*either classifies or embeds"),
        ({"num_identities": 1}, "num_identities=1"),
        ({"embedding": "before"}, "embedding='before' belongs to re-identification.*num_identities"),
        ({"num_identities": 5, "global_pool": ""}, "needs one feature an image.*global_pool='token' or 'avg'"),
        ({"side": {"views": 2}}, "side=.*a mapping with 'cameras'"),
        ({"side": 6}, "side=6: give a mapping with 'cameras'"),
        ({"side": {"cameras": 6, "scael": 1.0}}, "side=.*a mapping with 'cameras'"),
        ({"side": {"cameras": 0}}, "cameras=0; it is a whole number, at least 1"),
    ],
)
def test_impossible_models(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dynavit.create_model("test_vit", **options)


def test_pruning_a_model_that_exists(backbone_of: Callable[..., nn.Module]) -> None:
    backbone: Any = backbone_of("vit")
    with pytest.raises(InputError, match=r"classifier of its own.*num_classes=0, or call backbone.reset_classifier"):
        dynavit.prune(backbone, num_identities=5)
    assert backbone.num_classes == 7  # it was not edited
    backbone.reset_classifier(0)
    model = dynavit.prune(backbone, num_identities=5, embedding="before", side={"cameras": 2, "views": 3})
    assert model.neck is not None
    assert model.neck.embedding == "before"
    assert model.side is not None
    assert model.side.options() == {"cameras": 2, "views": 3, "scale": 3.0}


@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", "deit_distilled", "siglip"])
@pytest.mark.parametrize(("embedding", "side"), [("after", None), ("before", {"cameras": 3, "views": 2, "scale": 1.5})])
def test_round_trip(
    embedding: str, side: dict[str, Any] | None, family: str, tmp_path: Path, reid: Model, images_for: Images
) -> None:
    model = reid(family, embedding=embedding, side=side)
    model.metadata = {"class_names": NAMES, "preprocessing": {"mean": [0.5, 0.5, 0.5]}}
    model.save_pretrained(tmp_path)
    loaded = dynavit.load(tmp_path)
    images = images_for(model)
    numbers = () if side is None else (torch.tensor([0, 2, -1]), torch.tensor([1, 0, -1]))
    assert torch.equal(loaded(images, *numbers), model(images, *numbers))
    assert loaded.metadata == model.metadata
    assert "pipeline_tag: image-feature-extraction" in (tmp_path / "README.md").read_text()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


@torch.no_grad()
def test_settings_can_be_replaced_while_loading(tmp_path: Path, reid: Model, images_for: Images) -> None:
    model = reid()
    model.save_pretrained(tmp_path)
    assert model.neck is not None
    model.neck.embedding = "before"
    images = images_for(model)
    assert torch.equal(dynavit.load(tmp_path, embedding="before")(images), model(images))
    with pytest.raises(InputError, match="cannot be loaded into vit_tiny_patch16_224"):
        dynavit.load(tmp_path, num_identities=6)


def test_folders_of_classifiers_are_as_they_were(tmp_path: Path, model_of: Model) -> None:
    model_of("vit").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"num_identities", "embedding", "side"} & config.keys()
    assert "patch_stride" not in config["model_kwargs"]
    assert "pipeline_tag: image-classification" in (tmp_path / "README.md").read_text()
    loaded = dynavit.load(tmp_path)
    assert loaded.neck is None
    assert loaded.side is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_identities": 1}, "num_identities=1"),
        ({"num_identities": "many"}, "num_identities='many'"),
        ({"embedding": "between"}, "embedding='between'"),
        ({"side": {"cameras": "six"}}, "cameras='six'"),
        ({"num_identities": None}, "cannot be loaded into"),
    ],
)
def test_damaged_configs(change: dict[str, Any], message: str, tmp_path: Path, reid: Model) -> None:
    reid().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        dynavit.load(tmp_path)


@torch.no_grad()
def test_export_has_one_output(reid: Model, images_for: Images) -> None:
    model = reid(depth=2, stages=(1,), side={"cameras": 3})
    images, cameras = images_for(model, 2), torch.tensor([0, -1])
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (images, cameras), dynamic_shapes={"images": batch, "cameras": batch})
    for count in (1, 3):
        images, cameras = images_for(model, count, seed=1), torch.arange(count) - 1
        output = program.module()(images, cameras)
        torch.testing.assert_close(output, model(images, cameras), rtol=1e-5, atol=1e-6)


# what a run starts from


@pytest.fixture
def trained(tmp_path: Path, reid: Model) -> Path:
    """Return a folder with a re-identification model of the five identities in NAMES."""
    model = reid(side={"cameras": 3})
    model.metadata = {"class_names": NAMES}
    model.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


def restart(path: Path, names: list[str], **options: Any) -> tuple[PrunedViT, tuple[str, ...]]:
    start = load_reid_start(path, None, names, **options.pop("kwargs", {}))
    model = dynavit.prune(
        start.backbone,
        num_identities=len(names),
        side=options.pop("side", {"cameras": 3}),
        architecture=start.architecture,
        model_kwargs=start.model_kwargs,
        stages=(1, 3, 4),
        scorer="mlp",
        reducer="drop",
    )
    return model, start.restore(model)


@torch.no_grad()
def test_start_from_the_same_identities(trained: Path, images_for: Images) -> None:
    model, restored = restart(trained, NAMES)
    assert restored == ("neck", "side")
    saved = dynavit.load(trained)
    saved.scorers.load_state_dict(model.scorers.state_dict())  # a start has scorers of its own
    images, cameras = images_for(model), torch.tensor([0, 1, 2])
    assert torch.equal(model.eval()(images, cameras), saved(images, cameras))


@pytest.mark.parametrize("names", [NAMES[::-1], NAMES[:4], ["0", "1", "2", "3", "4"]])
def test_start_from_other_identities(trained: Path, names: list[str]) -> None:
    """As many identities of other names, or in another order, are other identities."""
    model, restored = restart(trained, names)
    assert restored == ("side",)
    assert model.neck is not None
    assert model.neck.num_identities == len(names)
    assert model.neck.classifier.weight.std() < 0.01
    saved = dynavit.load(trained)
    assert all(map(torch.equal, model.backbone.parameters(), saved.backbone.parameters()))


def test_start_with_other_cameras(trained: Path) -> None:
    assert restart(trained, NAMES, side={"cameras": 4})[1] == ("neck",)
    assert restart(trained, NAMES, side=None)[1] == ("neck",)
    assert load_reid_start(trained, None, None).neck is not None  # those of the checkpoint


def test_start_from_a_classifier(tmp_path: Path, model_of: Model, images_for: Images) -> None:
    """Its head goes; another image size resamples its positions."""
    saved = model_of("vit")
    saved.save_pretrained(tmp_path)
    model, restored = restart(tmp_path, NAMES, side=None)
    assert restored == ()
    images = images_for(saved)
    tokens = model.backbone.forward_features(images)
    assert torch.equal(tokens, saved.backbone.forward_features(images))

    resized, _ = restart(tmp_path, NAMES, side=None, kwargs={"img_size": [96, 48]})
    saved.set_input_size(img_size=(96, 48))
    images = images_for(saved)
    assert torch.equal(resized.backbone.forward_features(images), saved.backbone.forward_features(images))
    resized.save_pretrained(tmp_path / "resized")
    assert dynavit.load(tmp_path / "resized").adapter.grid_size == (6, 3)


@pytest.mark.parametrize("half", [False, True])
def test_start_from_a_state_dict(half: bool, tmp_path: Path) -> None:
    options = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    plain: Any = timm.create_model("vit_tiny_patch16_224", num_classes=11, **options)
    state = {name: value.half() if half else value for name, value in plain.state_dict().items()}
    save_file(state, tmp_path / "plain.safetensors")
    start = load_reid_start(tmp_path / "plain.safetensors", "vit_tiny_patch16_224", NAMES, **options)
    assert start.model_kwargs == {**options, "num_classes": 0}
    assert (start.neck, start.side) == (None, None)
    own: Any = start.backbone.state_dict()
    assert own.keys() == {name for name in state if not name.startswith("head")}
    assert all(torch.equal(value, state[name].float()) for name, value in own.items())


def test_starts_that_cannot_be(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(InputError, match="missing does not exist"):
        load_reid_start(tmp_path / "missing", None, NAMES)
    with pytest.raises(InputError, match=r"model.architecture=deit_tiny_patch16_224 but .* holds a vit_tiny"):
        load_reid_start(trained, "deit_tiny_patch16_224", NAMES)
    with pytest.raises(InputError, match=r"already says how its .*img_size, patch_stride, drop_rate, .*at most"):
        load_reid_start(trained, None, NAMES, embed_dim=96)
    save_file({"pos_embed": torch.zeros(1, 41, 192)}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=r"a state dict needs model.architecture"):
        load_reid_start(tmp_path / "odd.safetensors", None, NAMES)
    with pytest.raises(InputError, match=r"odd.safetensors does not fit the architecture"):
        load_reid_start(tmp_path / "odd.safetensors", "vit_tiny_patch16_224", NAMES, depth=1)


def test_a_classification_run_can_start_from_a_reid_model(trained: Path) -> None:
    saved = dynavit.load(trained)
    for names in (["cat", "dog"], NAMES):  # equal names or not, there is no head for them
        backbone: Any
        backbone, _, _, replaced = load_backbone(trained, None, names)
        assert replaced
        assert backbone.num_classes == len(names)
        assert torch.equal(backbone.pos_embed, saved.backbone.pos_embed)


@pytest.mark.parametrize("options", [{}, {"side": {"cameras": 3}}, {"spectra": 2}])
@torch.no_grad()
def test_a_model_pruned_anew_keeps_its_heads(
    options: dict[str, Any], reid: Callable[..., PrunedViT], images_for: Images, tmp_path: Path
) -> None:
    pruning = {"keep_ratio": 0.5, "stages": (1,), "scorer": "key_norm", "reducer": "drop", "selector": "topk"}
    model = reid(**pruning, **options).eval()
    model.metadata = {"class_names": list(NAMES)}
    images = images_for(model)
    images = torch.stack([images, images.flip(0)], dim=1) if "spectra" in options else images
    told = {"cameras": torch.zeros(len(images), dtype=torch.int64)} if "side" in options else {}
    again = dynavit.prune(dynavit.prune(model, stages=()), **pruning)
    assert torch.equal(again(images, **told), model(images, **told))
    assert not again.training
    again.save_pretrained(tmp_path)
    assert torch.equal(dynavit.load(tmp_path)(images, **told), model(images, **told))
    assert dynavit.load(tmp_path).metadata == model.metadata
    again.metadata["class_names"].append("another")
    assert model.metadata["class_names"] == NAMES
