"""The three keep-ratio losses through the trainer, and the warning about normalised scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from traces import trace_of

import dynavit
from dynavit.config import Config
from dynavit.scorers import Scorer, StageView
from dynavit.tasks.count_loss import CountLoss
from dynavit.training.announce import warn_of_normalised_logits
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


def forward(selector: str, reducer: str = "drop", execution: str = "auto", **options: object) -> dynavit.Trace:
    torch.manual_seed(0)
    model = dynavit.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=64, depth=4, stages=(1, 2), keep_ratio=0.5,
        selector={"name": selector, **options}, reducer=reducer,
    ).train()  # fmt: skip
    for predictor in model.scorers:
        nn.init.normal_(predictor.score[-1].weight)
    model.execution = execution
    return model(torch.randn(6, 3, 64, 64), return_trace=True)[1]


@pytest.mark.parametrize("selector", ["ste", "gumbel_sigmoid", "threshold_ste"])
def test_decisions_are_the_masks_of_the_forward(selector: str) -> None:
    """DynamicViT's form looks at what was sampled, the default at its probabilities."""
    trace = forward(selector)
    assert trace.weight is not None
    torch.testing.assert_close(trace.choices[-1].decided, trace.weight.mean(dim=1))
    if selector != "gumbel_sigmoid":
        for decided, count in zip([choice.decided for choice in trace.choices], trace.counts, strict=True):
            torch.testing.assert_close(decided.detach(), count / 16)
    ratios = [0.5, 0.25]
    for kind, fractions in (
        ("decisions", [choice.decided for choice in trace.choices]),
        ("probabilities", [choice.expected for choice in trace.choices]),
    ):
        expected = sum(((f - r) ** 2).mean() for f, r in zip(fractions, ratios, strict=True)) / 2
        torch.testing.assert_close(CountLoss(kind)(trace, [8, 4]), expected)


def test_probabilities_multiply_over_soft_stages_only() -> None:
    soft, hard = forward("gumbel_sigmoid"), forward("ste")
    for trace in (soft, hard):
        for probs, expected in zip(
            [choice.probs for choice in trace.choices], [choice.expected for choice in trace.choices], strict=True
        ):
            torch.testing.assert_close(probs.mean(dim=1), expected)
    assert (soft.choices[1].probs <= soft.choices[0].probs).all()
    assert not hard.stages[0].kept.all()
    assert (hard.choices[1].probs[~hard.stages[0].kept] == 0).all()


def test_tokens_made_are_no_patches() -> None:
    """With fuse a stage chooses among the token that the one before has made as well."""
    trace = forward("ste", "fuse")
    assert [choice.probs.shape for choice in trace.choices] == [(6, 16), (6, 17)]
    for choice, count in zip(trace.choices, trace.counts, strict=True):
        torch.testing.assert_close(choice.expected, choice.probs[:, :16].mean(dim=1))
        torch.testing.assert_close(choice.decided.detach(), count / 16)
    # where latency is a straight line, the expected one is that of the expected number
    expected = sum(((c.expected - k / 16) ** 2).mean() for c, k in zip(trace.choices, (8, 4), strict=True)) / 2
    torch.testing.assert_close(CountLoss("latency", torch.arange(17.0))(trace, [8, 4]), expected)


@pytest.mark.parametrize("kind", ["probabilities", "decisions", "latency"])
def test_removed_tokens_count_as_hidden_ones(kind: str) -> None:
    """Probes, and tokens that fill up shorter images, are no tokens that were kept."""
    budget = CountLoss(kind, torch.arange(17.0) ** 2)
    losses = [budget(forward("threshold_ste", "fuse", way), [8, 4]) for way in ("mask", "gather")]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["probabilities", "decisions", "latency"])
@pytest.mark.parametrize("rule", ["original", "linear", "current"])
def test_wanted_is_what_evaluation_keeps(rule: str, kind: str, tiny: Make) -> None:
    """Gates that are certain to keep so many patches cost nothing; other rules' counts would."""
    trainer = Trainer(tiny("model.selector.name=ste", f"model.count_rule={rule}", "model.keep_ratio=0.5"))
    wanted = {"original": [8, 4], "linear": [12, 8], "current": [8, 4]}[rule]
    batch = next(iter(trainer.batches.epoch(0, 0)))
    stages = [trace_of((torch.arange(16) < count).float().expand(2, 16)).stages[0] for count in wanted]
    loss, objective = CountLoss(kind, torch.arange(17.0) ** 2), trainer.setup.objective
    objective.count_loss = lambda trace, counts: loss(replace(trace, stages=stages), counts)  # type: ignore[assignment]
    for compiled in (False, True):  # where counts are tensors
        trainer.config.train.compile = compiled
        losses, _ = objective(trainer.model, *batch, trainer.schedules.at(0, torch.device("cpu")))
        assert float(losses["keep_ratio"]) == pytest.approx(0, abs=1e-12)


def test_latency_of_known_gates() -> None:
    """With gates that are certain, the loss is that of the latency table itself."""
    table = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])
    certain = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    found = CountLoss("latency", table)(trace_of(certain), [2])
    assert float(found) == pytest.approx(((4 - 2) / 8) ** 2 / 2)


@pytest.mark.parametrize("measure", ["probabilities", "decisions", pytest.param("latency", marks=pytest.mark.slow)])
def test_every_measure_trains_and_moves_the_scorers(measure: str, tiny: Make) -> None:
    config = tiny(
        f"loss.keep_ratio_measure={measure}",
        "model.selector.name=ste",
        "loss.keep_ratio_weight=50",
        "train.epochs=8",
        "optimizer.lr=0.01",
    )
    trainer = Trainer(config)
    trainer.fit()
    rows = trainer.metrics.rows()
    assert rows[-1]["train/keep_ratio"] < 0.7 * rows[0]["train/keep_ratio"]
    table = config.run_dir / "latency.json"
    assert table.exists() == (measure == "latency")
    if measure == "latency":  # measured once: a resumed run must not see other times
        values = json.loads(table.read_text())["seconds_per_image"]
        assert len(values) == 17
        config.train.epochs = 9
        resumed = Trainer(config, resume=True)
        assert resumed.setup.objective.count_loss is not None
        found = resumed.setup.objective.count_loss.table
        assert torch.equal(found, torch.tensor(values))


def test_a_table_of_another_model_is_refused(tiny: Make) -> None:
    config = tiny("loss.keep_ratio_measure=latency", "model.selector.name=ste")
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "latency.json").write_text(json.dumps({"seconds_per_image": [1.0, 2.0]}))
    with pytest.raises(dynavit.InputError, match=r"times of 1 tokens, the model has 16: remove the file"):
        Trainer(config)


class LogSoftmax(Scorer):
    """A predictor that normalises over tokens: T16's known-bad input to gates."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, tokens: Tensor, mask: Tensor | None = None, view: StageView | None = None) -> Tensor:
        return self.predictor(tokens, mask).log_softmax(dim=1)


def test_normalised_scores_are_warned_of(tiny: Make, recwarn: pytest.WarningsRecorder) -> None:
    trainer = Trainer(tiny("model.selector.name=ste", "train.epochs=1"))
    trainer.fit()
    assert not [w for w in recwarn if "log-probabilities" in str(w.message)]
    trainer = Trainer(tiny("model.selector.name=ste", "train.epochs=1", folder="normalised"))
    trainer.model.scorers[0] = LogSoftmax(trainer.model.scorers[0])
    batch = next(iter(trainer.batches.epoch(0, 0)))
    with pytest.warns(UserWarning, match=r"log-probabilities over the tokens.*raw logits"):
        trainer._step(*batch)


def test_the_numbers_behind_the_warning() -> None:
    """T16: gates over a softmax keep sum(p / (1 + p)) = N / (N + 1) tokens; raw logits pass."""
    raw = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    shares = raw.log_softmax(dim=1).sigmoid()
    uniform = torch.zeros(1, 32).log_softmax(dim=1).sigmoid()
    assert float(uniform.sum()) == pytest.approx(32 / 33)
    assert float((1 - uniform).prod()) == pytest.approx(0.3736, abs=1e-4)
    with pytest.warns(UserWarning, match="log-probabilities"):
        warn_of_normalised_logits(trace_of(shares))
    warn_of_normalised_logits(trace_of(raw.sigmoid()))  # warnings are errors here
