"""From a configuration to models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dynavit.config import Config
from dynavit.runs import build
from dynavit.runs.build import build_outline, build_start, resolve_preprocessing
from dynavit.training import dense_first
from dynavit.training.seeding import seed_all
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


@pytest.mark.parametrize("task", ["tiny", "reid"])
def test_a_probe_has_the_sizes_of_the_model_and_no_numbers(task: str, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(task)("model.pretrained=true")  # which would have to be downloaded
    before = torch.get_rng_state()
    outline = build_outline(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    config.model.pretrained = False
    model = build_start(config, None).model
    assert {name: p.shape for name, p in outline.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    for squash in (False, True):
        expected = resolve_preprocessing(config.data, model.backbone, squash)
        assert resolve_preprocessing(config.data, outline.backbone, squash) == expected


def test_a_training_builds_its_start_once(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = build.create_model

    def watched(*args: object, **kwargs: object) -> object:
        model = original(*args, **kwargs)  # type: ignore[arg-type]
        made.append(next(model.parameters()).device.type)
        return model

    monkeypatch.setattr(build, "create_model", watched)
    config = tiny()
    trainer = Trainer(config)
    assert made == ["meta", "cpu"]
    seed_all(config.seed)  # so its first weights are those that the seed alone gives
    first = build_start(config, trainer.setup.classes).model.state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value.cpu(), first[name]), name


def test_a_checkpoint_says_how_its_probe_is_made(tiny: Make, tmp_path: Path) -> None:
    start = build_start(tiny(), ["a", "b"]).model
    start.save_pretrained(tmp_path / "start")
    outline = build_outline(dense_first.starting_from(tiny(), tmp_path / "start"))
    assert outline.adapter.grid_size == start.adapter.grid_size == (4, 4)
