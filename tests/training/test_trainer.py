"""The training loop: what it learns, what it writes, and that it is a function of its configuration."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dynavit
from dynavit.config import Config, save_config
from dynavit.selectors import Selection, Selector
from dynavit.selectors.functional import hard_topk
from dynavit.training.monitor import Diverged, MetricsFile
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def equal(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(config: Config, resume: bool = False) -> Path:
    Trainer(config, resume).fit()
    return config.run_dir


class Killed(BaseException):
    pass


def kill_at(trainer: Trainer, step: int) -> None:
    """Make a trainer die right after an optimiser step."""
    original = trainer._step

    def dying(*args):
        result = original(*args)
        if trainer.progress.step == step:
            raise Killed
        return result

    trainer._step = dying
    with pytest.raises(Killed):
        trainer.fit()


def test_a_run_writes_what_it_promises_and_learns(tiny: Make) -> None:
    run = train(tiny("train.epochs=8"))
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml", "model.safetensors", "config.json", "best", "state", "metrics.jsonl",
    }  # fmt: skip
    assert list(run.glob("events.*"))
    rows = MetricsFile(run / "metrics.jsonl").rows()
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["step"] == 24
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    assert rows[-1]["val/top1"] > 90
    model = dynavit.load(run / "best")
    assert model.metadata["class_names"] == ["blue", "green", "red"]


@pytest.mark.parametrize("selector", ["topk", "gumbel_sigmoid", "ste"])
def test_selectors_train_from_the_same_config_with_one_word_changed(tiny: Make, selector: str) -> None:
    config = tiny(f"model.selector.name={selector}")
    trainer = Trainer(config)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("scorers.0") for name in moved)
    assert any(name.startswith("backbone.blocks") for name in moved)
    row = trainer.metrics.rows()[-1]
    assert ("train/keep_ratio" in row) == (selector != "topk")  # a fixed k has no budget to learn


def test_a_random_selection_leaves_its_scorers_alone(tiny: Make) -> None:
    trainer = Trainer(tiny("model.selector.name=random"))
    assert not any(p.requires_grad for p in trainer.model.scorers.parameters())
    trainer.fit()


def test_nothing_to_learn_is_refused(tiny: Make) -> None:
    with pytest.raises(dynavit.InputError, match="nothing is left to learn"):
        Trainer(tiny("model.selector.name=random", "train.freeze=backbone"))


def test_frozen_backbone_moves_only_scorers(tiny: Make) -> None:
    trainer = Trainer(tiny("train.freeze=backbone", "model.scorer.name=mlp"))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("backbone."), name


def test_freeze_epochs_hold_the_backbone_still_at_first(tiny: Make) -> None:
    trainer = Trainer(tiny("train.freeze_epochs=1", "train.epochs=1", "model.scorer.name=mlp"))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    moved = {name.split(".")[0] for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"scorers"}


def test_equal_configurations_give_equal_weights_for_any_number_of_workers(tiny: Make) -> None:
    runs = [train(tiny(f"data.workers={n}", folder=f"workers{n}")) for n in (0, 2)]
    assert equal(*runs)
    other = train(tiny("seed=1", folder="seed"))
    assert not equal(runs[0], other)


@pytest.mark.parametrize("selector", ["topk", "ste"])
@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)])
def test_an_interrupted_run_resumes_to_the_same_result(tiny: Make, step: int, selector: str) -> None:
    extra = [
        "train.checkpoint_steps=1", "train.ema_decay=0.9", f"model.selector.name={selector}",
        "schedule.temperature_start=2", "schedule.keep_ratio_warmup_epochs=1",
    ]  # fmt: skip
    whole = train(tiny(*extra, folder="whole"))
    config = tiny(*extra, folder="broken")
    kill_at(Trainer(config), step)
    broken = train(config, resume=True)
    assert equal(whole, broken)
    assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about CPUs")
def test_half_precision_that_a_cpu_does_not_have_is_refused(tiny: Make) -> None:
    config = tiny("train.mixed_precision=fp16")
    with pytest.raises(dynavit.InputError, match="mixed_precision=fp16: there is no GPU"):
        Trainer(config)
    assert not config.run_dir.exists()


def test_resume_without_a_state_starts_and_a_finished_run_is_left_alone(tiny: Make) -> None:
    config = tiny()
    run = train(config, resume=True)
    before = (run / "metrics.jsonl").read_text(), weights(run)
    train(config, resume=True)
    assert (run / "metrics.jsonl").read_text() == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in weights(run).items())


def test_an_existing_run_is_not_overwritten(tiny: Make) -> None:
    train(tiny())
    with pytest.raises(dynavit.InputError, match=r"already holds a run.*--resume"):
        Trainer(tiny())


def test_resume_with_another_configuration_is_refused(tiny: Make) -> None:
    train(tiny("train.epochs=1"))
    with pytest.raises(dynavit.InputError, match=r"another configuration: model.stages=\[1\] \(was \[1, 2\]\)"):
        Trainer(tiny("model.stages=[1]", "train.epochs=2"), resume=True)
    Trainer(tiny("train.epochs=2", "data.workers=1", "train.log_steps=7"), resume=True).fit()


def test_models_that_are_no_runs_are_not_overwritten(tiny: Make) -> None:
    run = train(tiny("train.epochs=2"))
    shutil.rmtree(run / "state")
    shutil.rmtree(run / "state.previous")
    before = weights(run)
    with pytest.raises(dynavit.InputError, match="holds a model but no state"):
        Trainer(tiny("train.epochs=2"), resume=True)
    (run / "config.yaml").unlink()
    with pytest.raises(dynavit.InputError, match="already holds a run"):
        Trainer(tiny("train.epochs=2"))
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


def test_only_whole_accumulated_steps_are_taken(tiny: Make) -> None:
    trainer = Trainer(tiny("train.accumulation_steps=2", "train.epochs=3"))  # of three batches an epoch
    trainer.fit()
    assert trainer.progress.step == trainer.schedules.total_steps == 3


def test_a_teacher_must_see_what_the_student_sees(tiny: Make) -> None:
    teacher = train(tiny("model.stages=[]", "model.kwargs.patch_size=16", "train.epochs=1", folder="teacher"))
    with pytest.raises(dynavit.InputError, match="another patch grid"):
        Trainer(tiny("loss.token_distillation_weight=1", f"loss.teacher={teacher}"))
    Trainer(tiny("loss.logit_distillation_weight=1", f"loss.teacher={teacher}", "train.epochs=1")).fit()


def test_a_checkpoint_of_other_classes_gets_a_new_head(tiny: Make, pictures: Path, tmp_path: Path) -> None:
    dense = train(tiny("model.stages=[]", "train.epochs=1", folder="dense"))
    shutil.copytree(pictures, tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "red").rename(tmp_path / "data" / split / "violet")
    config = tiny(f"data.root={tmp_path / 'data'}", folder="fine")
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense), None, {}
    trainer = Trainer(config)
    assert not torch.equal(trainer.model.backbone.head.weight, dynavit.load(dense).backbone.head.weight)


def test_a_damaged_state_is_named_and_the_previous_one_offered(tiny: Make) -> None:
    run = train(tiny())
    damaged = run / "state" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    config = tiny("train.epochs=3")
    with pytest.raises(dynavit.InputError, match=r"is damaged.*resume from state.previous"):
        Trainer(config, resume=True).fit()


def test_accumulation_takes_the_same_step_as_the_joint_batch(tiny: Make) -> None:
    common = ["train.epochs=1", "optimizer.name=sgd", "train.clip_grad_norm=null"]
    joint = train(tiny("data.batch_size=8", *common, folder="joint"))
    split = train(tiny("data.batch_size=4", "train.accumulation_steps=2", *common, folder="split"))
    for name, value in weights(joint).items():
        torch.testing.assert_close(weights(split)[name], value, rtol=1e-4, atol=1e-6)


def test_distillation_needs_a_teacher_that_knows_the_classes(tiny: Make) -> None:
    with pytest.raises(dynavit.InputError, match="does not know these classes"):
        Trainer(tiny("loss.logit_distillation_weight=0.5"))


def test_a_fine_tune_starts_from_the_checkpoint_and_is_taught_by_it(tiny: Make) -> None:
    dense = train(tiny("model.stages=[]", folder="dense"))
    config = tiny(
        "loss.logit_distillation_weight=0.5", "loss.token_distillation_weight=0.5", "train.epochs=1", folder="fine"
    )
    config.model.checkpoint, config.model.architecture, config.model.kwargs = str(dense), None, {}
    trainer = Trainer(config)
    for name, value in dynavit.load(dense).backbone.state_dict().items():
        torch.testing.assert_close(trainer.model.backbone.state_dict()[name], value, rtol=0, atol=0)
    teacher = trainer.setup.objective.teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer.fit()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    row = trainer.metrics.rows()[-1]
    expected = row["train/task"] + 0.5 * (row["train/logit_distillation"] + row["train/token_distillation"])
    assert row["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_mixup_trains_on_probabilities(tiny: Make) -> None:
    trainer = Trainer(tiny("data.mixup=0.8", "loss.label_smoothing=0.1", "train.epochs=1"))
    _, targets = trainer.setup.objective.prepare(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1]))
    assert targets.shape == (4, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    trainer.fit()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.scorer.name=mlp"], "removes the dropped tokens (model.execution=gather), all but model.probes=8 that"),
        pytest.param(
            ["model.execution=mask"], "hides the dropped tokens (model.execution=mask)", marks=pytest.mark.slow
        ),
        ([], "removes the dropped tokens (model.execution=gather).\n"),
    ],
)
def test_a_run_says_what_becomes_of_dropped_tokens(
    settings: list[str], said: str, tiny: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(tiny("train.epochs=1", *settings)).fit()
    assert f"Training {said}" in capsys.readouterr().out


@pytest.mark.parametrize("selector", ["topk", pytest.param("ste", marks=pytest.mark.slow)])
def test_training_by_removal_with_everything_else(selector: str, tiny: Make) -> None:
    config = tiny(
        "model.execution=gather", "model.probes=2", f"model.selector.name={selector}", "model.reducer.name=squeeze",
        "loss.logit_distillation_weight=0.5", "loss.token_distillation_weight=0.5", "train.ema_decay=0.9",
        "data.batch_size=4", "train.accumulation_steps=2", "train.grad_checkpointing=true",
        "schedule.keep_ratio_warmup_epochs=1", "schedule.temperature_end=0.5",
    )  # fmt: skip
    config.model.checkpoint = str(train(tiny("model.stages=[]", "train.epochs=1", folder="dense")))
    config.model.architecture, config.model.kwargs = None, {}
    trainer = Trainer(config)
    before = {name: weight.clone() for name, weight in trainer.model.scorers.named_parameters()}
    trainer.fit()
    assert all(not torch.equal(weight, before[name]) for name, weight in trainer.model.scorers.named_parameters())
    assert all(math.isfinite(value) for row in trainer.metrics.rows() for value in row.values())


def test_a_reducer_teaches_scorers_that_the_selector_does_not(tiny: Make) -> None:
    trainer = Trainer(
        tiny(
            "model.selector={name: topk, gradient: none}", "model.reducer={name: merge_nearest, weighted: true}",
            "model.execution=gather", "model.probes=0", "train.epochs=1",
        )
    )  # fmt: skip
    # but for the last bias, which moves all logits alike
    parts = [weight for weight in trainer.model.scorers.parameters() if weight.numel() > 1]
    parts.append(trainer.model.reducer.beta)
    before = [weight.clone() for weight in parts]
    trainer.fit()
    assert all(not torch.equal(weight, start) for weight, start in zip(parts, before, strict=True))


def test_training_on_gathered_tokens(tiny: Make) -> None:
    trainer = Trainer(tiny("model.execution=gather"))
    trainer.fit()
    assert dynavit.load(trainer.config.run_dir).execution == "auto"
    with pytest.raises(dynavit.InputError, match="GumbelSigmoid removes none"):
        Trainer(tiny("model.execution=gather", "model.selector.name=gumbel_sigmoid", folder="other")).fit()


@pytest.mark.slow
@pytest.mark.parametrize(
    "execution",
    [
        ["model.execution=mask", "schedule.keep_ratio_warmup_epochs=1"],
        # compiled code draws other random numbers, and moves the counts of a warm-up in fewer steps
        ["model.execution=gather", "model.probes=1000", "schedule.keep_ratio_warmup_epochs=0"],
    ],
)
def test_compiled_training_gives_the_same_weights(tiny: Make, execution: list[str]) -> None:
    common = ["train.epochs=1", "optimizer.name=sgd", *execution]
    eager = weights(train(tiny(*common, folder="eager")))
    compiled = weights(train(tiny("train.compile=true", *common, folder="compiled")))
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-6)


def test_an_exploding_learning_rate_is_stopped_and_the_good_checkpoint_kept(tiny: Make) -> None:
    config = tiny("train.epochs=1")
    run = train(config)
    good = weights(run)
    config = tiny("train.epochs=60", "optimizer.lr=1e3", "train.clip_grad_norm=null")
    save_config(config, run / "config.yaml")  # as if it had been so from the start
    with pytest.raises(Diverged, match="learning rate"):
        Trainer(config, resume=True).fit()
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    assert weights(run).keys() == good.keys()


class Amplified(Selector):
    """The well-known mistake: a huge constant times a mask that carries a gradient."""

    def sample(self, logits, request):
        keep = hard_topk(logits, request.alive, request.count)
        soft = logits.sigmoid() * 1e10
        return Selection(keep, keep + (soft - soft.detach()), logits.sigmoid() * request.alive)


def test_an_amplified_mask_is_recognised(tiny: Make) -> None:
    dynavit.register_selector("amplified", override=True)(Amplified)
    with pytest.raises(Diverged, match=r"1e10.*log\(mask\)"):
        Trainer(tiny("model.selector.name=amplified", "train.epochs=5")).fit()


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (("data.batch_size=64",), 24),
        (("data.batch_size=20", "train.accumulation_steps=5"), 4),
        (("data.batch_size=10", "train.accumulation_steps=5", "data.mixup=0.2"), 4),
        (("data.batch_size=64", "train.accumulation_steps=8", "data.cutmix=0.2"), 2),
        (("data.batch_size=24",), 24),
    ],
)
def test_batches_are_lowered_to_what_the_data_give(
    tiny: Make, settings: tuple[str, ...], size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(*settings, "train.epochs=1")
    trainer = Trainer(config)
    trainer.fit()
    assert trainer.batches.batch_size == size
    wanted = config.data.batch_size
    said = f"data.batch_size={wanted} is lowered to {size}: " in capsys.readouterr().out
    assert said == (size < wanted)
    assert trainer.progress.step == 1
    again = Trainer(tiny(*settings, "train.epochs=2"), resume=True)
    assert again.batches.batch_size == size


def test_data_for_no_batch_at_all_are_refused(tiny: Make) -> None:
    with pytest.raises(dynavit.InputError, match=r"only 24 images.*train.accumulation_steps=25; lower"):
        Trainer(tiny("train.accumulation_steps=25"))
    with pytest.raises(dynavit.InputError, match=r"only 24 images.*a batch of 2 .*accumulation_steps=13"):
        Trainer(tiny("train.accumulation_steps=13", "data.mixup=0.5"))
    with pytest.raises(dynavit.InputError, match=r"train.steps_per_epoch=1: 1 batches .*accumulation_steps=2; lower"):
        Trainer(tiny("train.accumulation_steps=2", "train.steps_per_epoch=1"))


def test_own_weights_of_other_classes_replace_the_head(tiny: Make, tmp_path: Path) -> None:
    import timm

    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    mine = timm.create_model("vit_tiny_patch16_224", num_classes=7, **kwargs)
    nn.init.normal_(mine.cls_token)
    torch.save({"model": mine.state_dict()}, tmp_path / "mine.pth")
    config = tiny()
    config.model.checkpoint = str(tmp_path / "mine.pth")
    trainer = Trainer(config)
    assert torch.equal(trainer.model.backbone.cls_token, mine.cls_token)
    assert trainer.model.num_classes == 3
    fast = [p for group in trainer.optimizer.param_groups if group["part"] == "fast" for p in group["params"]]
    assert any(p is trainer.model.backbone.head.weight for p in fast)

    state = mine.state_dict()
    state["blocks.0.attn.qkv.weight"] = torch.zeros(2, 2)
    state["extra"] = torch.zeros(1)
    del state["pos_embed"]
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(dynavit.InputError, match=r"missing: pos_embed; unknown: extra; other shape: blocks.0"):
        Trainer(config)
