"""ONNX files answer as torch does, at any batch size, or are not written."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dynavit
from dynavit.cli import main
from dynavit.deployment.deployed import Deployed
from dynavit.deployment.verify import clear_choices, same_tokens, verify

ROOT = Path(__file__).parents[2]


def test_tokens_that_differ_are_counted_and_refused() -> None:
    images = torch.arange(40.0).reshape(10, 4)

    def original(batch: Tensor) -> list[Tensor]:
        kept = torch.arange(20).expand(len(batch), -1)
        return [batch, kept, kept[:, :10]]

    def exported(batch: Tensor, wrong: int) -> list[Tensor]:
        answer, first, second = original(batch)
        odd = batch[:, 0] == 4.0  # the second image
        return [answer, torch.where(odd[:, None], first + wrong, first), second]

    assert same_tokens(original, original, images, (1, 3)) == (1.0, 1.0)
    # one image of ten has two of twenty tokens wrong; it is there twice where the first two fill the last batch of 3
    assert same_tokens(original, lambda some: exported(some, 2), images, (1,)) == (pytest.approx(1 - 0.1 / 10), 1.0)
    assert same_tokens(original, lambda some: exported(some, 2), images, (1, 3)) == (pytest.approx(1 - 0.2 / 12), 1.0)
    with pytest.raises(dynavit.InputError, match=r"at stage 1 91\.7 % are the same, where 97 %"):
        same_tokens(original, lambda some: exported(some, 10), images, (1, 3))


def test_verify_accepts_equal_and_refuses_different_models() -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(7, 3, 4, 4), torch.randn(48, 5)

    def original(batch: Tensor) -> Tensor:
        return batch.flatten(1) @ weight

    checked = verify(original, original, images)
    assert (checked.images, checked.batch_sizes) == (7, (1, 2, 5))
    assert checked.max_difference < 1e-5
    with pytest.raises(dynavit.InputError, match="batch size 1: by up to"):
        verify(original, lambda batch: original(batch) + 0.1, images)
    # an exporter that baked the example's batch in is right at 2 alone
    with pytest.raises(dynavit.InputError, match="batch size 5"):
        verify(original, lambda batch: original(batch) * (1 if len(batch) < 5 else 2), images)


@pytest.mark.parametrize("sizes", [(5,), (1, 2, 5), (7,)])
def test_every_clear_image_is_compared_at_every_batch_size(sizes: tuple[int, ...]) -> None:
    """The only clear one of six is the last, in no whole batch of 5; and six make no whole batch of 7."""
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    clear = torch.arange(6) == 5
    asked: list[int] = []

    def exported(batch: Tensor, wrong: float = 0.0) -> Tensor:
        asked.append(len(batch))
        return batch.flatten(1) + wrong

    checked = verify(lambda batch: batch.flatten(1), exported, images, sizes, clear=clear)
    assert (checked.images, checked.left_out, set(asked)) == (1, 5, set(sizes))
    with pytest.raises(dynavit.InputError, match=f"batch size {sizes[0]}: by up to"):
        verify(lambda batch: batch.flatten(1), lambda batch: exported(batch, 0.1), images, sizes, clear=clear)


@pytest.mark.parametrize("sizes", [(), (0, 2), (-1,)])
def test_batch_sizes_that_compare_nothing_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(dynavit.InputError, match=r"batch_sizes=.*: give one or more"):
        verify(torch.flatten, torch.flatten, torch.ones(2, 3, 4, 4), sizes)


def test_a_missing_package_is_named_as_its_index_names_it(
    model_of: Callable[..., Any], images_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynavit.deployment.checked import write_checked

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    model = model_of("vit", depth=1, stages=(0,))
    with pytest.raises(
        dynavit.InputError, match="onnxscript is missing: run `pip install onnx onnxscript onnxruntime`"
    ):
        write_checked(Deployed(model), tmp_path / "model.onnx", images_for(model, batch=2), {})


def test_an_export_leaves_the_levels_of_loggers_as_they_were(
    model_of: Callable[..., Any], images_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynavit.deployment.checked import write_checked

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before, within = [logger.level for logger in loggers], []

    def fail(*_: Any, **__: Any) -> None:
        within.extend(logger.level for logger in loggers)
        raise RuntimeError("no export today")

    monkeypatch.setattr(torch.onnx, "export", fail)
    model = model_of("vit", depth=1, stages=(0,))
    with pytest.raises(dynavit.InputError, match="no export today"):
        write_checked(Deployed(model), tmp_path / "model.onnx", images_for(model, batch=2), {})
    assert within == [logging.ERROR, logging.ERROR]
    assert [logger.level for logger in loggers] == before


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "deit_distilled", "dinov2_registers", "siglip", "gap"])
def test_every_family_exports(model_of, images_for, family: str, tmp_path: Path) -> None:
    from dynavit.deployment.checked import write_checked
    from dynavit.deployment.target import Target

    model = model_of(family, depth=3, stages=(1, 2), keep_ratio=0.5)
    images = images_for(model, batch=8)
    checked = write_checked(Deployed(model), tmp_path / "model.onnx", images, {"a": [1, "b"]}, Target(with_tokens=True))
    assert checked.max_difference < 1e-3 * checked.scale
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_what_is_deployed_tells_which_patches_are_kept(
    family: str, model_of: Callable[..., Any], images_for: Any
) -> None:

    model = model_of(family)
    images = images_for(model, batch=3)
    telling = Deployed(model, with_tokens=True)
    assert telling.names("logits") == ["logits", *(f"tokens_{stage + 1}" for stage in range(len(model.stages)))]
    with torch.no_grad():
        answer, *kept = telling(images)
        expected, trace = model(images, return_trace=True)
    assert torch.equal(answer, expected)
    assert all(torch.equal(one, other) for one, other in zip(kept, trace.kept, strict=True))
    dense = Deployed(dynavit.prune(model.backbone, stages=()).eval(), with_tokens=True)
    assert dense.names("logits") == ["logits"]
    assert isinstance(dense(images), Tensor)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino", "pt2"])
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_a_file_with_tokens_of_any_batch_or_of_one(
    format: str, batch: int | None, model_of: Callable[..., Any], images_for: Any, tmp_path: Path
) -> None:
    from dynavit.deployment.checked import write_checked
    from dynavit.deployment.formats import FORMATS
    from dynavit.deployment.target import Target

    model = model_of("vit", depth=3, stages=(1, 2), keep_ratio=0.5)
    images = images_for(model, batch=6)
    path = tmp_path / f"model{FORMATS[format].suffix}"
    target = Target(format, batch=batch, with_tokens=True)
    checked = write_checked(Deployed(model), path, images, {"a": [1]}, target)
    assert checked.same_tokens == (1.0, 1.0)
    assert checked.batch_sizes == ((1, 2, 5) if batch is None else (batch,))
    run = dynavit.open_exported(path)
    some = images[: batch or 4]
    answer, *kept = run(some)
    with torch.no_grad():
        expected, trace = model(some, return_trace=True)
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(kept, trace.kept, strict=True))
    if batch is not None:
        with pytest.raises(dynavit.InputError, match=rf"takes images of shape \({batch}, 3, 64, 96\)"):
            run(images[: batch + 1])
    for wrong in (images[:, :, :32], images[:, :1], images[0], images.double()):
        with pytest.raises(
            dynavit.InputError, match=r"takes images of shape \(.*, 3, 64, 96\) in float32, and was given"
        ):
            run(wrong)
    plain = write_checked(Deployed(model), path, images, {}, Target(format, batch=batch))
    assert plain.same_tokens == (1.0, 1.0)
    assert len(dynavit.open_exported(path)(some)) == 1
    assert {file.suffix for file in tmp_path.iterdir()} == {FORMATS[format].suffix, *FORMATS[format].beside}


@pytest.mark.slow
def test_a_model_that_differs_is_not_written(model_of, images_for, tmp_path: Path, monkeypatch) -> None:
    from dynavit.deployment import onnx
    from dynavit.deployment.checked import write_checked

    model = model_of("vit", depth=3, stages=(1,))
    (tmp_path / "model.onnx").write_text("earlier")
    original = onnx._export

    def wrong(module: Any, *arguments: Any) -> None:
        module.model.set_keep_ratio(0.3)
        original(module, *arguments)
        module.model.set_keep_ratio(0.7)

    monkeypatch.setattr(onnx, "_export", wrong)
    with pytest.raises(dynavit.InputError, match="Nothing was written"):
        write_checked(Deployed(model), tmp_path / "model.onnx", images_for(model, batch=8), {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


@pytest.mark.slow
def test_an_exported_model_needs_neither_torch_nor_dynavit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = dynavit.create_model(
        "vit_tiny_patch16_224",
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=3,
        stages=(1, 2), keep_ratio=0.5,
    )  # fmt: skip
    torch.nn.init.normal_(model.backbone.head.weight)
    preprocessing = {
        "image_size": [32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic", "crop_pct": 0.9,
    }  # fmt: skip
    model.metadata = {"class_names": ["red", "green", "blue"], "preprocessing": preprocessing}
    model.save_pretrained(tmp_path / "run")
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(40, 60), (32, 32), (50, 33), (100, 90)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")

    exported = tmp_path / "out" / "model.onnx"
    arguments = ["--keep-ratio", "0.7", "--images", str(folder), "--output", str(exported)]
    assert main(["export", str(tmp_path / "run"), *arguments]) == 0
    assert "same top-1" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "run"), "--images", str(folder), "--keep-ratio", "0.7"]) == 0
    expected = capsys.readouterr().out.splitlines()[1:]

    block = "import sys; sys.modules.update(torch=None, timm=None, dynavit=None, torchvision=None)\n"
    source = (ROOT / "tools" / "predict_onnx.py").read_text()
    (tmp_path / "alone.py").write_text(block + source)
    command = [sys.executable, "alone.py", str(exported), *sorted(map(str, folder.iterdir()))]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    for line, other in zip(expected, found, strict=True):
        (path, label, probability), (path_2, label_2, probability_2) = line.split(","), other.split(",")
        assert (path, label) == (path_2, label_2)
        assert float(probability) == pytest.approx(float(probability_2), abs=2e-3)

    import onnx

    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(exported).metadata_props}
    assert metadata["keep_ratios"] == [0.7, 0.49]
    assert metadata["preprocessing"] == preprocessing


def with_a_tie(model: dynavit.PrunedViT, images: Tensor, tied: int, k: int) -> Tensor:
    """Copy in one image the patch of rank k over the one of rank k + 1: rounding decides which is kept.

    Needs a model whose first stage stands before block 0 and that adds no positions.
    """
    with torch.no_grad():
        _, trace = model(images, return_trace=True)
    order = trace.choices[0].logits[tied].argsort(descending=True)
    (height, width), columns = model.adapter.patch_size, model.adapter.grid_size[1]
    places = [(int(patch) // columns * height, int(patch) % columns * width) for patch in order[k - 1 : k + 1]]
    (top, left), (to, into) = places
    images = images.clone()
    images[tied, :, to : to + height, into : into + width] = images[tied, :, top : top + height, left : left + width]
    return images


@pytest.fixture
def tied(model_of: Callable[..., dynavit.PrunedViT], images_for: Any) -> tuple[dynavit.PrunedViT, Tensor]:
    """A model and six images, in the third of which two patches score the same."""
    model = model_of("vit", stages=(0,), keep_ratio=0.5)
    torch.nn.init.zeros_(model.backbone.pos_embed)
    return model, with_a_tie(model, images_for(model, batch=6), tied=2, k=12)


def test_images_on_which_rounding_decides_are_left_out(tied: tuple[dynavit.PrunedViT, Tensor]) -> None:
    """Two tokens with the same score at the edge: another runtime may keep the other, and is right too."""
    model, images = tied
    clear = clear_choices(model, images)
    assert clear.tolist() == [True, True, False, True, True, True]

    def exported(batch: Tensor) -> Tensor:
        output = model(batch)
        return torch.where((batch == images[2]).flatten(1).all(dim=1)[:, None], -output, output)

    with torch.no_grad():
        checked = verify(model, exported, images, (1, 2, 5), clear=clear)
        assert (checked.images, checked.left_out) == (5, 1)
        with pytest.raises(dynavit.InputError, match="differs from the original"):
            verify(model, exported, images, (1, 2, 5))
        with pytest.raises(dynavit.InputError, match="nothing to compare by"):
            verify(model, exported, images, clear=torch.zeros(6, dtype=torch.bool))


def test_scores_that_hardly_differ_are_no_clear_choice(model_of: Callable[..., Any], images_for: Any) -> None:
    """A predictor that has learned nothing yet: noise on the pixels moves its scores even less than they differ."""
    model = model_of("vit", stages=(0,), keep_ratio=0.5)
    images = images_for(model, batch=4)
    assert clear_choices(model, images).all()
    last = model.scorers[0].score[-1]
    last.weight.data *= 1e-8
    last.bias.data.fill_(2.0)
    assert not clear_choices(model, images).any()


@pytest.mark.parametrize("reducer", ["merge", "squeeze"])
def test_partners_that_are_as_similar_are_no_clear_choice(
    reducer: str, model_of: Callable[..., dynavit.PrunedViT], images_for: Any
) -> None:
    """Equal patches are equally similar to all others; where one of those is merged, rounding picks its partner."""
    model = model_of("vit", stages=(0,), keep_ratio=0.55, reducer=reducer)
    torch.nn.init.zeros_(model.backbone.pos_embed)
    images = images_for(model, batch=4)
    assert clear_choices(model, images).all()
    images[1, :, :, 48:] = images[1, :, :, :48]  # every patch of the right half has its like in the left one
    assert clear_choices(model, images).tolist() == [True, False, True, True]


def test_where_nothing_is_chosen_every_choice_is_clear(
    tied: tuple[dynavit.PrunedViT, Tensor], model_of: Callable[..., dynavit.PrunedViT]
) -> None:
    model, images = tied
    model.set_keep_ratio(1.0)
    assert clear_choices(model, images).all()
    assert clear_choices(dynavit.prune(model.backbone, stages=()), images).all()
    assert clear_choices(dynavit.prune(model.backbone, stages=(0,), selector="random").eval(), images).all()


REDUCED: dict[str, tuple[str, dict[str, Any]]] = {
    "fuse": ("siglip", {"reducer": "fuse"}),
    "EViT": (
        "vit",
        {
            "reducer": {"name": "fuse", "normalize": False},
            "scorer": "class_attention",
            "placement": "inside",
            "count_rule": "current",
        },
    ),
    "squeeze": ("dinov3", {"reducer": "squeeze", "scorer": "attention_received", "placement": "inside"}),
    "merge": ("siglip", {"reducer": "merge"}),
    "merge_nearest": ("vit", {"reducer": "merge_nearest", "scorer": "distinctness"}),
    "merge_nearest_weighted": (
        "siglip",
        {"reducer": {"name": "merge_nearest", "weighted": True}, "scorer": "latent_attention"},
    ),
    "ToMe": ("vit", {"reducer": "merge", "placement": "inside", "count_rule": "linear"}),
    "aggregate": ("gap", {"reducer": {"name": "aggregate", "tokens": 4}, "scorer": "key_norm"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCED)
def test_every_reducer_exports(name: str, model_of: Callable[..., Any], images_for: Any, tmp_path: Path) -> None:
    from dynavit.deployment.checked import write_checked
    from dynavit.deployment.onnx import open_onnx
    from dynavit.deployment.target import Target

    family, options = REDUCED[name]
    model = model_of(family, depth=4, stages=(1, 2), keep_ratio=0.6, **options)
    images = images_for(model, batch=8)
    clear = clear_choices(model, images)
    assert clear.sum() >= 6
    checked = write_checked(Deployed(model), tmp_path / "model.onnx", images, {}, Target(with_tokens=True), clear=clear)
    assert checked.max_difference < 1e-3 * checked.scale
    # the file reduces: it says something else than the model does at another ratio
    model.set_keep_ratio(0.9)
    with torch.inference_mode():
        other = model(images)
    assert (open_onnx(tmp_path / "model.onnx")(images)[0] - other).abs().max() > 1e-2 * checked.scale


def test_a_model_with_thresholds_is_refused(model_of: Callable[..., Any], images_for: Any, tmp_path: Path) -> None:
    from dynavit.deployment.checked import write_checked

    model = model_of("vit")
    model.set_thresholds([0.0] * 3)
    with pytest.raises(dynavit.InputError, match=r"model.set_thresholds\(None\)"):
        write_checked(Deployed(model), tmp_path / "model.onnx", images_for(model, batch=8), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_leaves_thresholds_out_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = dynavit.create_model(
        "vit_tiny_patch16_224",
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=3,
        stages=(1, 2), keep_ratio=0.5,
    )  # fmt: skip
    torch.nn.init.normal_(model.backbone.head.weight)
    model.set_thresholds([0.0, 0.1])
    model.save_pretrained(tmp_path / "run")
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    assert main(["export", str(tmp_path / "run"), "--images", str(tmp_path), "--no-timing"]) == 0
    printed = capsys.readouterr().out
    assert "thresholds are left out" in printed
    assert "keep ratios 0.5, 0.25" in printed
