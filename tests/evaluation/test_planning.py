"""Planning: what is foretold is the sum of its parts, a plan is as fast as asked, and says where pruning never pays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import dynavit
from dynavit.cli import main
from dynavit.config import load_config
from dynavit.cost.macs import closed_form_macs
from dynavit.cost.timing import measure
from dynavit.errors import InputError
from dynavit.evaluation import cost_cache, part_costs, planning
from dynavit.evaluation.cost_cache import cached_costs
from dynavit.evaluation.methods import read_methods
from dynavit.evaluation.part_costs import Costs, Parts, measure_costs
from dynavit.evaluation.planning import planned, verdict
from dynavit.runs.build import build_start

TINY = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 3, "num_classes": 5}  # 64 patches
PARTS = {"selector": {"name": "topk", "gradient": "none"}, "scorer": "random", "reducer": "drop"}


def dense_vit() -> dynavit.PrunedViT:
    return dynavit.create_model("vit_tiny_patch16_224", stages=(), **TINY).eval()


def pruned_vit(**options: Any) -> dynavit.PrunedViT:
    return dynavit.prune(dense_vit().backbone, **{"stages": (1, 3), **PARTS, **options}).eval()


def linear(choosing: float = 0.0, per_patch: float = 1.0) -> Costs:
    """Blocks that take a second a patch."""
    return Costs([per_patch * patches for patches in range(65)], [(16, choosing), (64, choosing)], rest=10.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Time that is proportional to tokens, and a second to choose or to embed; names of what was timed."""
    timed: list[str] = []

    def taken(call: Any) -> float:
        if call.func is part_costs._run_blocks:
            (tokens,) = call.args
            return 1e-6 * len(tokens.x) * tokens.x.shape[1] * tokens.adapter.depth
        if call.func in (part_costs.run_step, part_costs._run_rest):
            return 1.0
        model, (images,) = call.func, call.args
        return 1e-9 * len(images) * closed_form_macs(model, image_size=tuple(images.shape[-2:])) + len(model.stages)

    def fake(calls: Mapping[str, partial[object]], rounds: int, min_seconds: float = 0.0) -> dict[str, list[float]]:
        timed.extend(calls)
        return {name: [taken(call)] * rounds for name, call in calls.items()}

    for module in (part_costs, planning):
        monkeypatch.setattr(module, "measure", fake)
    return timed


def test_what_is_foretold_is_the_sum_of_its_parts() -> None:
    costs, model = linear(choosing=3.0), pruned_vit(keep_ratio=0.5)
    # block 0 has 64 patches, 1 and 2 have 32, 3 to 5 have 16; two stages choose
    assert costs.predict(model) == 10 + 64 + 2 * 32 + 3 * 16 + 2 * 3
    assert costs.predict(model.at_ratio(1.0)) == 10 + 6 * 64
    inside = pruned_vit(keep_ratio=0.5, placement="inside")  # of the stage's own block, attention is whole
    assert costs.predict(inside) == 10 + 2 * 64 + 2 * 32 + 2 * 16 + 2 * 3
    sloped = Costs(costs.blocks, [(16, 1.0), (64, 4.0)], rest=10.0)
    assert sloped.predict(model) == pytest.approx(10 + 64 + 64 + 48 + 4.0 + 2.0)  # 64 and 32 patches


def test_a_plan_is_the_largest_ratio_that_is_fast_enough() -> None:
    costs, model = linear(choosing=1.0), pruned_vit()
    for wanted in (300.0, 200.0, 100.0):
        plan = planned(model, costs, wanted)
        assert costs.predict(plan) <= wanted
        more = [ratio / 1000 for ratio in range(1, 1001) if ratio / 1000 > plan.keep_ratios[0]]
        counts = [round(64 * ratio) for ratio in plan.keep_ratios]
        slower = [model.at_ratio(ratio) for ratio in more]
        assert all(costs.predict(one) > wanted for one in slower if [round(64 * r) for r in one.keep_ratios] > counts)


def test_ratios_are_at_the_edges_of_a_staircase() -> None:
    tiles = Costs([float(-(-patches // 16)) for patches in range(65)], [(16, 0.0), (64, 0.0)], rest=0.0)
    plan = planned(pruned_vit(), tiles, 20.0)
    counts = [round(64 * ratio) for ratio in plan.keep_ratios]
    assert all(count % 16 == 0 for count in counts)
    assert tiles.predict(plan) <= 20.0


def test_what_no_ratio_reaches_says_what_can_be_had() -> None:
    with pytest.raises(InputError, match=r"from 3\.94e\+05 down to .* up to 4\.\d\dx as fast"):
        planned(pruned_vit(), linear(choosing=1.0), 10.0)
    with pytest.raises(InputError, match=r"do not prune: .* which takes 1\.38e\+04 ms .* 1\.4\de\+04 ms at least"):
        planned(pruned_vit(), linear(choosing=2.0, per_patch=0.01), 10.0)


@pytest.mark.usefixtures("clock")
def test_costs_are_what_was_measured() -> None:
    costs = measure_costs(dense_vit(), PARTS, batch_size=2)
    assert len(costs.blocks) == 65
    assert costs.blocks[64] == pytest.approx(1e-6 * 2 * 65)  # with the class token
    assert costs.blocks[20] == pytest.approx(1e-6 * 2 * 21)
    assert costs.blocks[0] == costs.blocks[4]  # not measured below
    assert costs.stage == [(32, 1.0), (64, 1.0)]
    assert costs.predict(pruned_vit(keep_ratio=1.0)) == pytest.approx(1.0 + 6 * costs.blocks[64])


@pytest.mark.parametrize(
    ("method", "sizes"),
    [("default", True), ("tome", True), ("evit", False), ("evit_fuse", False), ("seps", False)],
)
def test_blocks_are_timed_on_tokens_as_the_method_leaves_them(method: str, sizes: bool) -> None:
    (chosen,) = read_methods([f"methods/{method}"])
    parts = Parts.of(dense_vit(), chosen.parts, batch_size=2)
    for count, call in parts.blocks.items():
        (tokens,) = call.args
        assert tokens.positions.shape == (2, count)
        assert (tokens.size is not None) == (sizes and count < 64)  # what is whole has no sizes
    assert sorted(parts.blocks) == [*range(4, 64, 4), 63, 64]
    with torch.inference_mode():
        for call in parts.calls().values():
            call(), call()  # each leaves what it works on as it was
    assert all(call.args[0].x.shape[1] == 1 + count for count, call in parts.blocks.items())


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("side", [1, 2])
def test_images_of_few_patches_can_be_measured(side: int) -> None:
    dense = dynavit.create_model("vit_tiny_patch16_224", stages=(), **TINY | {"img_size": 8 * side}).eval()
    costs = measure_costs(dense, PARTS, batch_size=2)
    assert costs.blocks[1:] == pytest.approx([1e-6 * 2 * (1 + count) for count in range(1, side**2 + 1)])
    pruned = dynavit.prune(dense.backbone, **{"stages": (1, 3), **PARTS, "keep_ratio": 0.5}).eval()
    assert costs.predict(pruned) > 0


@pytest.mark.usefixtures("clock")
def test_patches_that_overlap_are_counted() -> None:
    dense = dynavit.create_model("vit_tiny_patch16_224", stages=(), patch_stride=4, **TINY).eval()
    costs = measure_costs(dense, PARTS, batch_size=1)
    assert len(costs.blocks) == 15 * 15 + 1
    assert [patches for patches, _ in costs.stage] == [15 * 15 // 2, 15 * 15]


def test_costs_are_measured_once_for_a_machine(
    clock: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cached_costs(dense_vit(), PARTS, 2)
    measured = len(clock)
    assert cached_costs(dense_vit(), PARTS, 2) == first
    assert len(clock) == measured
    cached_costs(dense_vit(), PARTS, 2, fresh=True)
    assert len(clock) == 2 * measured
    cached_costs(dense_vit(), PARTS, 4)
    (other, _) = sorted((tmp_path / "dynavit" / "costs").iterdir())
    assert len(clock) == 3 * measured
    other.write_text('{"blocks": "all"}')  # damaged: measured again
    cached_costs(dense_vit(), PARTS, 2), cached_costs(dense_vit(), PARTS, 4)
    assert len(clock) == 4 * measured
    monkeypatch.setattr(cost_cache, "machine", lambda device: "another machine")
    cached_costs(dense_vit(), PARTS, 2)
    assert len(clock) == 5 * measured


def test_where_pruning_does_not_pay_the_reason_is_said() -> None:
    rows = [{"speedup": [1.0, 1.0, 1.0]}, {"speedup": [0.8, 0.7, 0.9]}]
    said = verdict(rows, linear(choosing=2.0, per_patch=1e-3), 1)
    assert said is not None
    assert "0.80x as fast" in said
    assert "64 ms a batch with 64 patches and 32 ms with half of them, and choosing them takes 2e+03 ms" in said
    assert verdict([rows[0], {"speedup": [1.3, 1.2, 1.4]}], linear(), 1) is None


@pytest.mark.slow
def test_the_tool_plans_and_its_settings_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With real times, of a model that is large enough for tokens to count."""
    quick = partial(measure, min_seconds=0.0)
    for module in (part_costs, planning):
        monkeypatch.setattr(module, "measure", lambda calls, rounds, min_seconds=0.0: quick(calls, rounds))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["plan", "vit_tiny_patch16_224", "--batch-size", "2", "--rounds", "3"]
    assert main([*words, "--speedup", "1.5"]) == 0
    said = capsys.readouterr().out
    table, _, settings = said.partition("To train this:")
    assert "pruned" in table
    assert "dense, " in table
    (tmp_path / "plan.yaml").write_text(settings)
    config = load_config(tmp_path / "plan.yaml", ["model.architecture=vit_tiny_patch16_224"])
    model = build_start(config, ["a", "b"]).model
    assert model.stages == (0, 4)
    assert model.scorers[0].name == "distinctness"
    # where nothing is faster than anything else
    monkeypatch.setattr(planning, "measure", lambda calls, rounds, **_: {name: [1.0] * rounds for name in calls})
    assert main([*words, "--keep-ratio", "0.999"]) == 0
    assert "Do not prune: the model would be" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vit_tiny_patch16_224"], "--speedup 1.5, or --target-ms 20"),
        (["vit_tiny_patch16_224", "--speedup", "2", "--keep-ratio", "0.5"], "--keep-ratio 0.5: leave it out"),
        (["vit_tiny_patch17_224", "--speedup", "2"], "no such folder or state dict, and no timm model"),
        (["vit_tiny_patch16_224", "--speedup", "2", "--method", "methods/evitt"], "evitt"),
        (["vit_tiny_patch16_224", "--speedup", "2", "--batch-size", "0"], "--batch-size=0"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_model_without_weights_is_as_fast(clock: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    found = dynavit.plan("test_vit", keep_ratio=0.5, batch_size=2)
    assert found.stages == (0, 2)
    assert [row["setting"] for row in found.rows[:2]] == ["dense", "pruned"]
    assert found.settings["model"]["keep_ratios"] == [0.5, 0.25]
    assert found.why_not is not None  # choosing takes a second here
    assert "pruned" in clock
