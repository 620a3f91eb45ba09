"""save_pretrained, load, and what they say about folders that are not right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dynavit
from dynavit import InputError, PrunedViT
from dynavit.models import hub, loading
from dynavit.selectors import Random, StraightThrough, TopK

Model = Callable[..., PrunedViT]
Images = Callable[..., Tensor]


@pytest.fixture
def folder(tmp_path: Path, model_of: Model) -> Path:
    """A saved small ViT."""
    model_of("vit").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def test_round_trip(family: str, tmp_path: Path, model_of: Model, images_for: Images) -> None:
    model = model_of(family, selector={"name": "random", "seed": 5}, keep_ratio=None, keep_ratios=(1, 0.5, 0.4))
    model.metadata = {"classes": ["a", "b"], "mean": [0.5, 0.5, 0.5]}
    model.train()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}

    loaded = dynavit.load(tmp_path)
    assert not loaded.training
    assert isinstance(loaded.selector, Random)
    assert loaded.selector.seed == 5
    assert loaded.stages == (1, 3, 4)
    assert loaded.keep_ratios == (1.0, 0.5, 0.4)
    assert loaded.metadata == model.metadata
    images = images_for(loaded)
    logits, trace = loaded(images, return_trace=True)
    expected, expected_trace = model.eval()(images, return_trace=True)
    assert torch.equal(logits, expected)
    assert all(map(torch.equal, trace.kept, expected_trace.kept))
    # and a second generation is no different
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("vit", lambda model: model.reset_classifier(5)),
        ("vit", lambda model: model.reset_classifier(5, "avg")),
        ("siglip", lambda model: model.reset_classifier(5, "avg")),
        ("deit_distilled", lambda model: model.reset_classifier(5)),
        ("vit", lambda model: model.set_input_size(img_size=(96, 64))),
        ("siglip", lambda model: model.set_input_size(img_size=(48, 64), patch_size=(8, 8))),
        ("dinov2_registers", lambda model: model.set_input_size(img_size=(84, 70))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changes_made_after_creation_are_saved(
    family: str, change: Callable[[PrunedViT], None], tmp_path: Path, model_of: Model, images_for: Images
) -> None:
    model = model_of(family)
    change(model)
    model.save_pretrained(tmp_path)
    loaded = dynavit.load(tmp_path)
    images = images_for(model)
    assert torch.equal(loaded(images), model(images))
    assert loaded.backbone.global_pool == model.backbone.global_pool


def test_settings_can_be_replaced_while_loading(folder: Path) -> None:
    assert dynavit.load(folder, keep_ratio=0.5).keep_ratios == (0.5, 0.25, 0.125)
    assert dynavit.load(folder, keep_ratios=(0.9, 0.8, 0.7)).keep_ratios == (0.9, 0.8, 0.7)
    assert isinstance(dynavit.load(folder, selector="ste").selector, StraightThrough)
    assert isinstance(PrunedViT.from_pretrained(folder).selector, TopK)
    assert isinstance(PrunedViT.from_pretrained(str(folder), selector="ste").selector, StraightThrough)
    with pytest.raises(InputError, match="a keep ratio lies in"):
        dynavit.load(folder, keep_ratio=2.0)


def test_a_wrapped_model_of_timm_needs_no_description(
    tmp_path: Path, family: str, images_for: Images, backbone_of: Callable[..., Any]
) -> None:
    """Name and arguments are read off it, and off its shapes."""
    backbone = backbone_of(family)
    model = dynavit.prune(backbone).eval()
    model.save_pretrained(tmp_path)
    loaded = dynavit.load(tmp_path)
    assert torch.equal(loaded(images_for(model)), model(images_for(model)))
    assert loaded.architecture is not None
    config = loaded.backbone.pretrained_cfg
    assert all(config[key] == backbone.pretrained_cfg[key] for key in ("mean", "std", "crop_pct", "interpolation"))


def test_a_model_from_elsewhere_needs_its_origin(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    backbone = VisionTransformer(img_size=64, depth=3, embed_dim=24, num_heads=2)
    with pytest.raises(InputError, match=r"architecture='timm_name'.*dynavit\.prune"):
        dynavit.prune(backbone).save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    dynavit.prune(backbone, architecture="vit_tiny_patch16_224").save_pretrained(tmp_path)
    assert dynavit.load(tmp_path).adapter.depth == 3


def test_refused_or_interrupted_saves_leave_the_previous_files(
    folder: Path, model_of: Model, images_for: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = model_of("vit", selector="ste")
    other.reset_classifier(3)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.save_pretrained(folder)
    other.model_kwargs["norm_layer"] = nn.LayerNorm
    with pytest.raises(InputError, match="no plain data"):
        other.save_pretrained(folder)
    del other.model_kwargs["norm_layer"]
    other.architecture, other.backbone.pretrained_cfg = None, {}
    with pytest.raises(InputError, match="origin is unknown"):
        other.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert dynavit.load(folder)(images_for(other)).shape == (3, 7)


def test_the_card_says_what_is_known_and_that_of_the_user_is_kept(folder: Path, model_of: Model) -> None:
    card = folder / "README.md"
    assert card.read_text().startswith("---\nlibrary_name: dynavit\npipeline_tag: image-classification\n---\n")
    assert "| license | not stated |" in card.read_text()
    assert "trained on" not in card.read_text()
    model = model_of("vit")
    model.metadata = {"class_names": ["cat", "a|b"], "license": "mit"}
    found = {"stages": list(model.stages), "keep_ratios": [0.5, 0.25]}
    model.metadata["training"] = {
        "data": "folder", "images": "1,200", "epochs": 3, "result": "top-1 98.35 % on 2,000 images", **found,
    }  # fmt: skip
    model.save_pretrained(folder)
    for part in (
        "license: mit\n---",
        "| classes | 2: cat, a\\|b |",
        "| trained on | folder, 1,200 images, 3 epochs |",
        "| validation | top-1 98.35 % on 2,000 images, at 0.5, 0.25 of the patches |",
        f"| pruned before blocks | {model.stages[0]}, ",
    ):
        assert part in card.read_text(), part
    # that is not what another model was found to be
    dynavit.prune(model, stages=(0,), keep_ratio=0.1).save_pretrained(folder)
    assert "98.35" not in card.read_text()
    # what somebody else calls training is none of this
    for metadata in ({"training": {"lr": 1e-3}}, {"training": "text"}, {"class_names": 5}):
        model.metadata = metadata
        model.save_pretrained(folder)
        assert "trained on" not in card.read_text()
    card.write_text("mine")
    model.save_pretrained(folder)
    assert card.read_text() == "mine"


@pytest.mark.parametrize("path", ["missing", "runs/of/mine", "/no/where", "./x", "pyproject.toml", "a/b c"])
def test_no_such_folder(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at once, without asking the Hub for something that cannot be there."""
    monkeypatch.setattr(loading, "hf_hub_download", validating_download)
    with pytest.raises(InputError, match=r"is no folder, and no name of a Hugging Face Hub repository"):
        dynavit.load(path)


def validating_download(repo_id: str, name: str, **kwargs: Any) -> str:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    raise LocalEntryNotFoundError("cannot reach the Hub")


def test_repository_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "hf_hub_download", validating_download)
    with pytest.raises(InputError, match=r"me/model is no folder, .* config\.json \(cannot reach the Hub\)"):
        dynavit.load("me/model")


def test_repository_of_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, images_for: Images, model_of: Model
) -> None:
    asked: list[tuple[str, str, Any]] = []

    def download(repo_id: str, name: str, **kwargs: Any) -> str:
        asked.append((repo_id, name, kwargs["revision"]))
        return str(folder / name)

    monkeypatch.setattr(loading, "hf_hub_download", download)
    model = dynavit.load("me/model", revision="v1")
    assert asked == [("me/model", "config.json", "v1"), ("me/model", "model.safetensors", "v1")]
    images = images_for(model)
    assert torch.equal(model(images), model_of("vit")(images))


def test_push_to_the_hub(monkeypatch: pytest.MonkeyPatch, images_for: Images, model_of: Model, tmp_path: Path) -> None:
    class Api:
        def __init__(self, token: str | None) -> None:
            self.token = token

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
            assert (self.token, private, exist_ok) == ("secret", True, True)
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, repo_id: str, folder_path: str, **options: Any) -> str:
            assert options == {"commit_message": "First", "revision": "trial", "create_pr": True}
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(hub, "HfApi", Api)
    model, images = model_of("vit"), images_for(model_of("vit"))
    options = {"commit_message": "First", "branch": "trial", "private": True, "token": "secret", "create_pr": True}
    assert model.push_to_hub("pruned", **options) == "https://huggingface.co/me/pruned"
    assert torch.equal(dynavit.load(tmp_path / "me/pruned")(images), model(images))
    where = model.save_pretrained(tmp_path / "local", push_to_hub=True, **options)
    assert where == "https://huggingface.co/me/local"


def test_missing_files(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors does not exist: the folder holds no trained model"):
        dynavit.load(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json does not exist: .* is no dynavit model folder"):
        dynavit.load(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(folder: Path, share: float) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: int(share * len(weights))])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be loaded.*truncated"):
        dynavit.load(folder)


def test_weights_of_another_model(folder: Path, model_of: Model) -> None:
    model_of("vit", embed_dim=24, num_heads=2).save_pretrained(folder / "other")
    (folder / "other/model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(InputError, match=r"cannot be loaded into vit_tiny_patch16_224.*size mismatch"):
        dynavit.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "lacks architecture"),
        (b"null", "lacks architecture"),
        (b'{"model_type": "vit", "hidden_size": 192}', "lacks architecture.*not written by dynavit"),
    ],
)
def test_damaged_or_foreign_config(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    for load in (dynavit.load, PrunedViT.from_pretrained):
        with pytest.raises(InputError, match=rf"config\.json.*{message}"):
            load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_of_tomorrow"}, "timm has no model 'vit_of_tomorrow'"),
        ({"selector": {"name": "of_a_plugin"}}, "unknown selector 'of_a_plugin'"),
        ({"stages": [1, 99, 100]}, r"stages=\[1, 99, 100\]"),
        ({"from_the_future": 1}, "from_the_future, which this dynavit does not know"),
    ],
)
def test_config_that_this_installation_cannot_build(folder: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=message):
        dynavit.load(folder)


def test_configs_of_earlier_versions_load(folder: Path, images_for: Images, model_of: Model) -> None:
    """Keys that were added later may be missing."""
    config = json.loads((folder / "config.json").read_text())
    for key in ("global_pool", "metadata", "reducer"):
        del config[key]
    del config["model_kwargs"]["patch_size"]
    (folder / "config.json").write_text(json.dumps(config))
    model = dynavit.load(folder)
    assert torch.equal(model(images_for(model)), model_of("vit")(images_for(model)))


def test_weights_of_version_0_1_load(folder: Path, images_for: Images, model_of: Model) -> None:
    """It called scorers predictors."""
    state = load_file(folder / "model.safetensors")
    assert any(name.startswith("scorers.0.") for name in state)
    before = {name.replace("scorers.", "predictors.", 1): tensor for name, tensor in state.items()}
    save_file(before, folder / "model.safetensors")
    assert torch.equal(dynavit.load(folder)(images_for(model_of("vit"))), model_of("vit")(images_for(model_of("vit"))))
