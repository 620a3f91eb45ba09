"""The benchmark: what is compared with what, and that its numbers say what the times say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch

import dynavit
from dynavit import InputError
from dynavit.cli import main
from dynavit.config.recipes import find_config
from dynavit.cost import closed_form_macs, measure
from dynavit.evaluation import benchmark
from dynavit.evaluation.benchmark import benchmark_models, benchmark_selectors, oracle
from dynavit.evaluation.benchmark_tables import format_models, format_selectors
from dynavit.evaluation.methods import read_methods
from dynavit.evaluation.training_steps import WITH_TEACHER, training_steps
from dynavit.functional import num_keep
from dynavit.selectors import create_selector, list_selectors

TINY = {"img_size": 64, "embed_dim": 32, "num_heads": 2, "depth": 4, "num_classes": 5}  # 16 patches
NAME = "vit_tiny_patch16_224"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Run every variant once and give it the times stored here by name, else one second in both rounds."""
    times: dict[str, list[float]] = {}

    def fake(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        for run in variants.values():
            run()
        assert times.keys() <= variants.keys()
        return {name: times.get(name, [1.0, 1.0]) for name in variants}

    monkeypatch.setattr(benchmark, "measure", fake)
    return times


def test_the_oracle_is_the_pruned_model_without_choosing(
    family: str, model_of: Callable[..., dynavit.PrunedViT], images_for: Callable[..., torch.Tensor]
) -> None:
    """Where the tokens to keep are the first ones anyway, both give the same answer."""
    model = model_of(family)
    images = images_for(model)
    patches = model.adapter.grid_size[0] * model.adapter.grid_size[1]
    first = [torch.arange(patches) < num_keep(patches, ratio) for ratio in model.keep_ratios]
    model.selector = create_selector("fixed", decisions=[keep.expand(len(images), -1) for keep in first])
    with torch.no_grad():
        torch.testing.assert_close(oracle(model, images), model(images), rtol=1e-4, atol=1e-5)
        model.set_keep_ratio(1.0)
        assert torch.equal(oracle(model, images), model.backbone(images))


def test_rows_say_what_the_times_say(clock: dict[str, list[float]]) -> None:
    clock["dense"] = [6.0, 9.0]
    clock["inference 0"] = [4.0, 3.0]
    clock["oracle 0"] = [2.0, 2.5]
    clock["without 1 0"] = [2.0, 2.4]
    (row,) = benchmark_models(NAME, [0.5], [4], model_kwargs=TINY)
    assert (row["run"], row["dtype"], row["batch_size"], row["keep_ratio"]) == ("inference", "float32", 4, 0.5)
    assert row["tokens"] == [8, 4]
    assert row["ms"] == pytest.approx({"dense": 7500 / 4, "pruned": 3500 / 4, "oracle": 2250 / 4})
    assert row["speedup"] == pytest.approx(((1.5 + 3) / 2, 1.5, 3))
    assert row["oracle_speedup"] == pytest.approx((3.3, 3, 3.6))
    assert row["share"] == pytest.approx([(1 / 2 + 2.5 / 3) / 2, 1 / 2, 2.5 / 3])
    assert row["stages"][1] == pytest.approx(((0.5 + 0.8) / 2, 0.5, 0.8))
    pruned, dense = dynavit.create_model(NAME, keep_ratio=0.5, **TINY), dynavit.create_model(NAME, stages=(), **TINY)
    assert row["macs_ratio"] == closed_form_macs(dense) / closed_form_macs(pruned)

    shown = format_models([row]).splitlines()
    assert "8/4" in shown[2]
    assert shown[2].endswith("2.25x  [1.50, 3.00]   3.30x  0.667  0.500 to 0.833")
    remarks = [line for line in shown if "saves less than it costs" in line]
    assert len(remarks) == 2  # the others: 1 s without, 3.5 s with
    assert "before block 1" in remarks[1]
    assert "0.65x [0.50, 0.80]" in remarks[1]
    clock["without 1 0"] = [2.0, 3.6]  # now once slower and once faster than with it
    shown = format_models(benchmark_models(NAME, [0.5], [4], model_kwargs=TINY)).splitlines()
    assert [("before block 1" in line) for line in shown if "does not clearly pay" in line] == [True]


def test_stages_that_pay_or_do_not_run_are_not_remarked(clock: dict[str, list[float]]) -> None:
    clock["inference 0"] = [0.5, 0.5]
    paying, dense = benchmark_models(NAME, [0.5, 1.0], [2], model_kwargs=TINY)
    assert set(paying["stages"]) == {0, 1}
    assert dense["stages"] == {}
    assert "costs" not in format_models([paying, dense])


def test_every_ratio_size_and_precision_has_its_row(clock: dict[str, list[float]]) -> None:
    rows = benchmark_models(NAME, [0.7, 0.5], [1, 2], ["float32", "bfloat16"], model_kwargs=TINY)
    cases = {(row["dtype"], row["batch_size"], row["keep_ratio"]) for row in rows}
    assert len(cases) == len(rows) == 8
    table = format_models(rows).splitlines()[:10]
    assert len({len(line) for line in table}) == 1


def test_methods_are_compared_with_an_oracle_of_their_own_lengths(clock: dict[str, list[float]]) -> None:
    methods = read_methods(find_config(f"methods/{name}") for name in ("evit", "tome"))
    evit, tome = benchmark_models(NAME, [0.5], [2], methods=methods, model_kwargs=TINY)
    assert [row["method"] for row in (evit, tome)] == ["evit", "tome"]
    assert len(evit["tokens"]) == 3
    assert len(tome["tokens"]) == TINY["depth"]
    assert [row["keep_ratio"] for row in (evit, tome)] == [0.5, 0.5]  # as asked for, whatever the rule makes of it
    assert evit["stages"] == tome["stages"] == {}


def test_thresholds_need_images() -> None:
    with pytest.raises(InputError, match=r"^adaptive keeps tokens by thresholds.*dynavit methods"):
        benchmark_models(NAME, methods=read_methods([find_config("methods/adaptive")]), model_kwargs=TINY)


def precisions(monkeypatch: pytest.MonkeyPatch, **options: object) -> dict[str, set[torch.dtype]]:
    """Run the benchmark and return the precisions that each variant's linear layers gave."""
    seen: dict[str, set[torch.dtype]] = {}

    def spy(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        for name, run in variants.items():
            found = seen.setdefault(name, set())
            hook = torch.nn.modules.module.register_module_forward_hook(
                lambda module, inputs, output, found=found: (
                    found.add(output.dtype) if isinstance(module, torch.nn.Linear) else None
                )
            )
            run()
            hook.remove()
        return {name: [1.0] for name in variants}

    monkeypatch.setattr(benchmark, "measure", spy)
    benchmark_models(NAME, [0.5], [2], model_kwargs=TINY, **options)  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_that_is_compared_runs_in_the_same_precision(
    dtype: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = precisions(monkeypatch, dtypes=[dtype], training=training)
    assert len(seen) >= 4
    assert set(map(frozenset, seen.values())) == {frozenset({getattr(torch, dtype)})}


@pytest.mark.parametrize(
    ("selector", "runs"),
    [
        ("topk", ["training, mask", "training, gather"]),
        ("ste", ["training, mask", "training, gather"]),
        ("gumbel_sigmoid", ["training, mask"]),  # removes none
    ],
)
def test_training_steps(selector: str, runs: list[str], clock: dict[str, list[float]]) -> None:
    clock["training, mask 0"] = [1.25, 1.25]
    rows = benchmark_models(NAME, [0.5], [2], selector=selector, training=True, model_kwargs=TINY)
    assert [row["run"] for row in rows] == runs
    assert rows[0]["speedup"] == (0.8, 0.8, 0.8)
    assert "stages" not in rows[0]
    assert "training, mask" in format_models(rows)


def test_a_training_step_has_the_gradient_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked, gathered, dense and truncated steps all reach the first layer, and only pruned ones the scorers."""
    reached: dict[str, tuple[bool, bool]] = {}

    def spy(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        for name, run in variants.items():
            module = run.args[0]  # type: ignore[attr-defined]
            run()
            predicted = [p.grad is not None for p in getattr(module, "scorers", torch.nn.Module()).parameters()]
            first = next(p for key, p in module.named_parameters() if key.endswith("patch_embed.proj.weight"))
            reached[name] = (bool((first.grad != 0).any()), bool(predicted) and all(predicted))
        return {name: [1.0] for name in variants}

    monkeypatch.setattr(benchmark, "measure", spy)
    benchmark_models(NAME, [0.5], [2], selector="topk", training=True, model_kwargs=TINY)
    assert reached == {
        "dense": (True, False),
        "oracle 0": (True, False),
        "training, mask 0": (True, True),
        "training, gather 0": (True, True),
    }


def test_with_a_teacher_everything_compared_has_one(clock: dict[str, list[float]]) -> None:
    clock["training, gather 0"] = clock["oracle 0"] = [0.5, 0.5]
    clock["dense, with teacher"] = [1.5, 1.5]
    clock["training, gather 0, with teacher"] = [1.25, 1.25]
    rows = benchmark_models(NAME, [0.5], [2], training=True, teacher=True, model_kwargs={**TINY, "img_size": 128})
    assert [(row["run"], row["teacher"]) for row in rows] == [
        ("training, mask", False),
        ("training, gather", False),
        ("training, mask", True),
        ("training, gather", True),
    ]
    assert [row["speedup"][0] for row in rows] == pytest.approx([1, 2, 1.5, 1.2])
    assert [row["share"][0] for row in rows] == pytest.approx([0.5, 1, 1, 0.8])
    for row in rows:
        saved = row["saved_bytes"]
        assert saved["oracle"] < saved["pruned"]
        assert (saved["pruned"] < saved["dense"]) == (row["run"] == "training, gather")
        assert "peak_bytes" not in row  # not on a CPU
    shown = format_models(rows).splitlines()
    assert shown[0].split()[-4:] == ["saved", "MB", "of", "dense"]
    assert shown[2].endswith(f"{saved_ratio(rows[0]):.2f}x")
    assert [line.split()[3] for line in shown[2:6]] == ["no", "no", "yes", "yes"]
    rows[0]["peak_bytes"] = {"dense": 4e6, "pruned": 3e6, "oracle": 2e6}
    assert format_models(rows[:1]).splitlines()[2].endswith("3.00     0.75x")


def saved_ratio(row: Mapping[str, Mapping[str, int]]) -> float:
    return row["saved_bytes"]["pruned"] / row["saved_bytes"]["dense"]


def test_the_teacher_is_the_dense_model_and_teaches_all() -> None:
    """It says what the dense model says, which therefore learns nothing from it."""
    dense = dynavit.create_model(NAME, stages=(), **TINY)
    model = dynavit.prune(dense.backbone, keep_ratio=0.5)
    teacher = deepcopy(dense.backbone).eval().requires_grad_(False)
    images, gradients = torch.randn(2, 3, 64, 64), {}
    for taught in (None, teacher):
        for name, step in training_steps(dense, [model], images, torch.float32, taught).items():
            torch.manual_seed(0)  # draws the same probes
            step()
            gradients[name] = [parameter.grad.clone() for parameter in dense.backbone.parameters()]
    for name in ("dense", "oracle 0", "training, mask 0", "training, gather 0"):
        alike = map(partial(torch.allclose, atol=1e-5), gradients[name], gradients[name + WITH_TEACHER])
        assert all(alike) == (name == "dense"), name


def test_rivals_are_timed_in_the_same_rounds(clock: dict[str, list[float]]) -> None:
    clock |= {"dense": [4.0, 4.0], "inference 0": [2.0, 2.0], "inference 1": [1.0, 1.1]}
    clock |= {f"dense, {size} px": [time, time] for size, time in ((176, 3.0), (160, 2.2), (144, 1.2))}
    kwargs = TINY | {"img_size": 192}
    rivals = ["auto", "176", "vit_tiny_patch16_224"]
    rows = benchmark_models(NAME, [0.7, 0.5], [2], rivals=rivals, model_kwargs=kwargs)
    # of the ladder those nearest to 2.0 and to 1.05 s; 128 px and below take as long as others do here, 1 s
    names = ["default", "default", "dense, 160 px", "dense, 128 px", "dense, 176 px", "vit_tiny_patch16_224"]
    assert [row["method"] for row in rows] == names
    smaller = rows[2]
    assert smaller["speedup"] == (4 / 2.2, 4 / 2.2, 4 / 2.2)
    assert smaller["ms"] == {"dense": 2000.0, "pruned": 1100.0}
    dense = dynavit.create_model(NAME, stages=(), **kwargs)
    small = dynavit.create_model(NAME, stages=(), **(kwargs | {"img_size": 160}))
    assert smaller["macs_ratio"] == closed_form_macs(dense) / closed_form_macs(small)
    assert "share" not in smaller
    line = next(line for line in format_models(rows).splitlines() if line.startswith("dense, 160 px"))
    assert line.split()[-3:] == ["-", "-", "-"]


def test_rivals_have_no_training_steps() -> None:
    with pytest.raises(InputError, match=r"--rivals.*inference alone"):
        benchmark_models(NAME, training=True, rivals=["auto"], model_kwargs=TINY)
    with pytest.raises(InputError, match="multiple of 16 pixels"):
        benchmark_models(NAME, rivals=["60"], model_kwargs=TINY)
    with pytest.raises(InputError, match="vit_tiny_patch17"):
        benchmark_models(NAME, rivals=["vit_tiny_patch17_224"], model_kwargs=TINY)


def test_selectors_against_a_block(clock: dict[str, list[float]]) -> None:
    clock["block"] = [50.0, 100.0]
    clock["topk"] = [1.0, 1.0]
    rows = benchmark_selectors(NAME, [2, 3], model_kwargs=TINY)
    scored = [name for name in list_selectors() if create_selector(name).needs_scores]
    assert [(row["batch_size"], row["selector"]) for row in rows] == [(b, name) for b in (2, 3) for name in scored]
    assert {"topk", "ste", "gumbel_sigmoid"} <= set(scored)
    row = next(row for row in rows if row["selector"] == "topk")
    assert row["percent"] == pytest.approx([1.5, 1, 2])
    assert row["ms"] == pytest.approx({"selector": 1000, "block": 75000})
    assert row["tokens"] == 16
    line = next(line for line in format_selectors(rows).splitlines() if line.startswith("topk"))
    assert line.endswith("1.50  [1.00, 2.00]")


def test_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With real, but short, timings."""
    monkeypatch.setattr(benchmark, "measure", lambda variants, rounds: measure(variants, rounds, min_seconds=1e-3))
    common = ["benchmark", "--backbone", NAME, "--model-kwargs", json.dumps(TINY), "--rounds", "2", "--device", "cpu"]
    path = tmp_path / "new" / "times.json"
    assert main([*common, "--keep-ratios", "0.7,0.5", "--batch-sizes", "1,2", "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{NAME}, random weights; cpu" in shown
    assert f"{torch.get_num_threads()} threads" in shown
    written = json.loads(path.read_text())
    assert written["backbone"] == NAME
    assert format_models(written["rows"]) in shown
    assert all(row["ms"][name] > 0 for row in written["rows"] for name in ("dense", "pruned", "oracle"))

    assert main([*common, "--selectors", "--batch-sizes", "2", "--output", str(path)]) == 0
    assert format_selectors(json.loads(path.read_text())["rows"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtypes", "int8"], "dtype int8: choose from float32"),
        (["--backbone", "vit_tny"], "timm has no model 'vit_tny'"),
        (["--selector", "topp"], "unknown selector 'topp'"),
        (["--keep-ratios", "1.5"], "keep_ratio=1.5"),
        (["--rounds", "0"], "rounds=0"),
        (["--output", "times.csv"], "must end in .json"),
        (["--teacher"], "teacher=True (--teacher): training steps alone have one"),
        (["--device", "foo"], "--device foo"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--backbone", "test_vit", *arguments]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error: ")
    assert said in shown
    assert "\n" not in shown


def test_arguments_for_timm_must_be_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", "--model-kwargs", "[384]"])
    assert "a JSON object" in capsys.readouterr().err
    with pytest.raises(InputError, match="timm cannot create"):
        benchmark_models("test_vit", model_kwargs={"colour": "red"})
