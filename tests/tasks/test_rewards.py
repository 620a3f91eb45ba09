"""Selectors that learn from a reward, through the trainer: what is rewarded, compared and refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from traces import trace_of

import dynavit
from dynavit.config import Config, LossConfig
from dynavit.tasks import rewards
from dynavit.tasks.classification import ClassificationObjective
from dynavit.tasks.objective import Scheduled
from dynavit.tasks.rewards import Reward, create_reward, register_reward
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


class Output(NamedTuple):
    features: Tensor
    logits: Tensor


def test_rewards_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    assert create_reward("correct")(logits, labels).tolist() == [1.0, 1.0, 0.0]
    expected = logits.log_softmax(dim=1)[torch.arange(3), labels]
    torch.testing.assert_close(create_reward("likelihood")(logits, labels), expected)
    # mixup's probabilities: the class with most of it
    assert create_reward("correct")(logits, torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])).tolist() == [1, 0, 0]
    features = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.3, 0.0], [5.0, 0.0]])
    output = Output(features, torch.zeros(4, 2))
    # 0 and 1 are each other's nearest, 2 is nearest to 1, 3 to 2
    assert create_reward("rank1")(output, torch.tensor([0, 0, 1, 1])).tolist() == [1, 1, 0, 1]


def odd_labels(output: Tensor, targets: Tensor) -> Tensor:
    """A reward of one's own."""
    return (targets % 2).float()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    create_reward("correct")
    monkeypatch.setattr(rewards, "_REWARDS", dict(rewards._REWARDS))
    yield
    rewards._load_entry_points.cache_clear()


@pytest.mark.usefixtures("registry")
def test_a_reward_of_ones_own_is_registered(tiny: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert register_reward("odd")(odd_labels) is register_reward("odd")(odd_labels) is create_reward("odd")
    trainer = Trainer(tiny("loss.reward=odd", "model.selector.name=score_function"))
    assert trainer.setup.objective.reward is odd_labels
    with pytest.raises(dynavit.InputError, match=r"^reward 'correct' is already registered by dynavit.tasks.rewards;"):
        register_reward("correct")(odd_labels)
    assert register_reward("correct", override=True)(odd_labels) is create_reward("correct")
    for wrong in (math.pi, math.sqrt, bool):
        with pytest.raises(dynavit.InputError, match=r"^reward 'mine': .* is no function of \(output, targets\)"):
            register_reward("mine")(wrong)  # type: ignore[type-var]
    # by another package
    (tmp_path / "demo-1.0.dist-info").mkdir()
    (tmp_path / "demo-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
    (tmp_path / "demo-1.0.dist-info" / "entry_points.txt").write_text("[dynavit.rewards]\ntheirs = theirs:reward\n")
    (tmp_path / "theirs.py").write_text("def reward(output, targets):\n    return targets\n")
    monkeypatch.syspath_prepend(tmp_path)
    rewards._load_entry_points.cache_clear()
    assert create_reward("theirs").__module__ == "theirs"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corect", r"^loss.reward=corect: Did you mean 'correct'.*rank1, or register .*rewards.register_reward"),
        ("math:sqrt", r"^loss.reward=math:sqrt: choose one of likelihood, correct, rank1, or"),
        ("", r"^loss.reward=: choose"),
    ],
)
def test_unknown_rewards_are_refused(name: str, message: str) -> None:
    with pytest.raises(dynavit.InputError, match=message):
        create_reward(name)


def test_a_configuration_imports_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "unheard_of.py").write_text("f = print\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(dynavit.InputError, match=r"^loss.reward=unheard_of:f: "):
        create_reward("unheard_of:f")
    assert "unheard_of" not in sys.modules


@pytest.mark.parametrize(
    ("override", "selector"),
    [
        ("loss.reward=correct", "ste"),
        ("loss.reward=nowhere:f", "score_function"),
    ],
)
def test_rewards_that_cannot_be_used_are_refused_before_anything_is_trained(
    tiny: Make, override: str, selector: str
) -> None:
    with pytest.raises(dynavit.InputError, match=rf"^{override}[: ]"):
        Trainer(tiny(override, f"model.selector.name={selector}"))


@pytest.mark.parametrize("function", [lambda output, targets: 1.0, lambda output, targets: torch.ones(())])
def test_a_reward_gives_one_number_an_image(function: Reward) -> None:
    objective = ClassificationObjective(LossConfig(), dynavit.create_selector("score_function"), None, None)
    objective.reward = function
    with pytest.raises(dynavit.InputError, match=r"^loss.reward=likelihood returned .* \(2,\), one number an image"):
        objective._rewards(torch.zeros(8, 3), torch.zeros(8))


def test_rank1_needs_embeddings() -> None:
    with pytest.raises(dynavit.InputError, match="task=reid"):
        create_reward("rank1")(torch.zeros(2, 3), torch.tensor([0, 1]))


def bandit(selector: dict[str, object], samples: int, reward: str, rounds: int) -> tuple[Tensor, Tensor]:
    """Score-function gradients of the predictor's last bias-free input, over many draws, and the exact one.

    The "model" has four tokens, one logit each, and answers class 1 where it kept tokens 0 and 1, so the
    reward "correct" is a function of the set alone whose expectation can be enumerated.
    """
    logits = torch.tensor([0.3, -0.2, 0.5, 0.0], requires_grad=True)
    made = dynavit.create_selector(**selector).train()

    class Chooses(torch.nn.Module):
        def forward(self, images: Tensor, **_: object) -> tuple[Tensor, dynavit.Trace]:
            n = len(images)
            selection = made(logits.expand(n, 4), torch.ones(n, 4, dtype=torch.bool), 2)
            wins = selection.keep[:, 0] & selection.keep[:, 1]
            answer = torch.stack([torch.where(wins, 0.0, 1.0), torch.where(wins, 1.0, 0.0)], dim=1)
            return answer, trace_of(selection.probs, selection.log_prob)

    settings = LossConfig(reward=reward, reward_samples=samples)
    objective = ClassificationObjective(settings, made, None, None)
    images, labels = torch.zeros(500, 1), torch.ones(500, dtype=torch.long)
    gradients = []
    for number in range(rounds):
        torch.manual_seed(number)
        losses, _ = objective(Chooses(), images, labels, labels, Scheduled(1.0, [2]))
        assert losses["loss"] == losses["task"]  # what is reported and guarded; its gradient is all of the reward's
        (gradient,) = torch.autograd.grad(-losses["loss"], logits)
        gradients.append(gradient)
    free = torch.tensor([0.3, -0.2, 0.5, 0.0], requires_grad=True)
    if selector["distribution"] == "bernoulli":
        expected = free[:2].sigmoid().prod()
    else:
        first = free.softmax(dim=0)
        expected = first[0] * first[1] / (1 - first[0]) + first[1] * first[0] / (1 - first[1])
    (exact,) = torch.autograd.grad(expected, free)
    return torch.stack(gradients), exact


@pytest.mark.parametrize(
    ("selector", "samples"),
    [
        ({"name": "score_function", "distribution": "plackett_luce"}, 2),
        ({"name": "score_function", "distribution": "plackett_luce"}, 5),
        ({"name": "score_function", "distribution": "bernoulli"}, 3),
        ({"name": "score_function", "distribution": "bernoulli", "antithetic": True}, 7),  # pairs, whatever is set
    ],
)
def test_the_objective_is_unbiased_for_a_reward_without_a_gradient(selector: dict[str, object], samples: int) -> None:
    """The whole path: repeated batch, rewards per sample, leave-one-out, against enumeration."""
    found, exact = bandit(selector, samples, "correct", rounds=200)
    z = (found.mean(dim=0) - exact) / (found.std(dim=0) / len(found) ** 0.5)
    assert z.abs().max() < 5
    assert (exact / (found.std(dim=0) / len(found) ** 0.5)).abs().max() > 20  # enough draws to see a wrong one


def test_one_reward_per_sample_not_per_batch(tiny: Make) -> None:
    """Negative control: rewarding the samples of an image alike teaches nothing."""
    config = tiny("model.selector.name=score_function", "loss.reward_samples=3", "train.epochs=1")
    trainer = Trainer(config)
    trainer.fit()
    row = trainer.metrics.rows()[-1]
    assert row["train/policy_gradient"] != 0
    objective = trainer.setup.objective
    assert objective.samples == 3
    objective.reward = lambda output, targets: targets.float()
    batch = next(iter(trainer.batches.epoch(0, 0)))
    losses, trace = objective(trainer.model.train(), *batch, trainer.schedules.at(0, torch.device("cpu")))
    assert trace.log_prob is not None
    assert len(trace.log_prob) == 3 * len(batch[0])
    assert float(losses["policy_gradient"].detach()) == 0.0


def test_scorers_move_by_the_reward_alone(tiny: Make) -> None:
    """The mask of score_function carries no gradient: with a constant reward its scorers stay."""
    moved = []
    for weight in (1.0, 0.0):
        config = tiny(
            "model.selector.name=score_function", f"loss.policy_gradient_weight={weight}", "train.epochs=1",
            "loss.reward=correct", "model.reducer.name=drop", folder=f"weight{weight}",
        )  # fmt: skip
        trainer = Trainer(config)
        before = trainer.model.scorers[0].state_dict()
        before = {name: value.clone() for name, value in before.items()}
        trainer.fit()
        after = trainer.model.scorers[0].state_dict()
        moved.append(max(float((after[name] - before[name]).abs().max()) for name in before))
    assert moved[0] > 1e-4
    assert moved[1] == 0.0


def test_antithetic_pairs_need_a_single_stage(tiny: Make) -> None:
    disarm = "model.selector={name: score_function, distribution: bernoulli, antithetic: true}"
    with pytest.raises(dynavit.InputError, match=r"one stage only, not 2: set model.stages"):
        Trainer(tiny(disarm))
    trainer = Trainer(tiny(disarm, "model.stages=[1]", "train.epochs=1", folder="one"))
    assert trainer.setup.objective.samples == 2
    trainer.fit()
    assert trainer.metrics.rows()[-1]["train/keep_ratio"] > 0  # gates have a budget
