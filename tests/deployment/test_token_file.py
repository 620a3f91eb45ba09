"""The file of tokens says what the trace says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import dynavit
from dynavit.deployment.token_file import describe_tokens
from dynavit.models import Trace
from dynavit.runs.open import open_run

Make = Callable[..., dynavit.PrunedViT]

KINDS: dict[str, dict[str, Any]] = {
    "by default": {},
    "learned": {"selector": "topk", "scorer": "mlp", "reducer": "drop"},
    "random": {"selector": "random", "reducer": "drop"},
    "fused": {"selector": "topk", "scorer": "class_attention", "reducer": "fuse"},
    "aggregated": {"selector": "topk", "scorer": "mlp", "reducer": "aggregate"},
    "merged": {"reducer": "merge"},
    "one stage idle": {"keep_ratio": (1.0, 0.5)},
}


def saved(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 3}
    settings = {"stages": (1, 2), "keep_ratio": 0.5, **sizes, **options}
    dynavit.create_model("vit_tiny_patch16_224", **settings).save_pretrained(folder)
    return folder


def forward(run_dir: Path, paths: list[str]) -> Trace:
    run = open_run(run_dir)
    images = torch.stack([run.transform(Image.open(path)) for path in paths])
    with torch.no_grad():
        return run.model(images, return_trace=True)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_the_trace(kind: str, pictures: Path, tmp_path: Path) -> None:
    run_dir = saved(tmp_path / "run", **KINDS[kind])
    rows = dynavit.predict(run_dir, pictures / "val", tokens=tmp_path / "x.json")  # in one batch, as below
    assert rows == dynavit.predict(run_dir, pictures / "val")
    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert found.keys() == {"blocks", "images"}
    assert found["blocks"] == [1, 2]
    assert [image["image"] for image in found["images"]] == [row["image"] for row in rows]
    trace = forward(run_dir, [row["image"] for row in rows])
    scored = [stage.choice is not None and kind != "random" for stage in trace.stages]
    assert scored == {"random": [False] * 2, "merged": [False] * 2, "one stage idle": [False, True]}.get(
        kind, [True] * 2
    )
    for number, image in enumerate(found["images"]):
        assert image["grid"] == [4, 6]
        assert [stage["kept"] for stage in image["stages"]] == [
            stage.kept[number].nonzero()[:, 0].tolist() for stage in trace.stages
        ]
        for stage, expected, has_scores in zip(image["stages"], trace.stages, scored, strict=True):
            if has_scores:
                check_scores(stage["scores"], expected.choice, number)
            else:
                assert stage["scores"] is None
        check_sources(image["sources"], trace, number)


def check_scores(scores: list[float | None], choice: Any, number: int) -> None:
    """Every score stands at its patch, to the last bit; nothing stands anywhere else."""
    known = {
        int(patch): logit.item()
        for patch, logit, alive in zip(
            choice.positions[number], choice.logits[number], choice.candidates[number], strict=True
        )
        if alive and patch >= 0
    }
    assert {patch for patch, score in enumerate(scores) if score is not None} == known.keys()
    places = sorted(known)
    assert torch.equal(*(torch.tensor([values[place] for place in places]) for values in (scores, known)))


def check_sources(sources: list[int | None], trace: Trace, number: int) -> None:
    for source, token in zip(sources, trace.source[number].tolist(), strict=True):
        assert source == (None if token < 0 else int(trace.positions[number, token]))


def test_numbers_read_back_to_the_last_bit_and_are_json() -> None:
    model = dynavit.create_model("test_vit", stages=(1,), keep_ratio=0.5, selector="topk", scorer="mlp").eval()
    with torch.no_grad():
        _, trace = model(torch.randn(2, 3, *model.adapter.image_size), return_trace=True)
    logits = trace.stages[0].choice.logits
    logits[0, 1] = -torch.inf
    first, second = (image["stages"][0]["scores"] for image in describe_tokens(trace))
    assert first[1] is None
    assert torch.equal(torch.tensor(second), logits[1])
    assert torch.equal(torch.tensor([score for score in first if score is not None]), logits[0, logits[0].isfinite()])


def between(logits: Tensor) -> float:
    """A threshold that rounding moves no token across."""
    ordered = logits.flatten().sort().values
    return ordered[len(ordered) // 2 :][:2].mean().item()


def test_images_with_numbers_of_their_own(model_of: Make, images_for: Callable[..., Tensor]) -> None:
    model = model_of("vit")
    images = images_for(model, 5)
    with torch.no_grad():
        _, trace = model(images, return_trace=True)
        model.set_thresholds([between(stage.choice.logits) for stage in trace.stages])
        _, together = model(images, return_trace=True)
        alone = [model(image[None], return_trace=True)[1] for image in images]
    assert len({int(count) for count in together.counts[0]}) > 1
    for one, trace in zip(describe_tokens(together), alone, strict=True):
        (other,) = describe_tokens(trace)
        assert one["sources"] == other["sources"]
        assert [stage["kept"] for stage in one["stages"]] == [stage["kept"] for stage in other["stages"]]
        for stage, expected in zip(one["stages"], other["stages"], strict=True):
            assert [score is None for score in stage["scores"]] == [score is None for score in expected["scores"]]


def test_the_documented_example_has_what_a_file_has(pictures: Path, tmp_path: Path) -> None:
    (shown,) = re.findall(r"(?ms)^```json\n(.*?)^```", (Path(__file__).parents[2] / "docs/images.md").read_text())
    dynavit.predict(saved(tmp_path / "run"), pictures / "val/red/0.png", tokens=tmp_path / "x.json")
    written = (tmp_path / "x.json").read_text()
    assert json.loads(shown).keys() == json.loads(written).keys()
    assert set(re.findall(r'"(\w+)":', shown)) == set(re.findall(r'"(\w+)":', written))
