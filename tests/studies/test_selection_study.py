"""The selection study covers every selector, and its problem cannot be solved without selecting."""

import pytest
import torch

from dynavit.selectors import create_selector, list_selectors
from studies.selection import run_selection, train
from studies.selection_problem import (
    NUM_CLASSES,
    NUM_FOREGROUND,
    NUM_TOKENS,
    HiddenForeground,
    SelectiveClassifier,
)
from studies.selection_variants import LEFT_OUT, VARIANTS


def test_every_registered_selector_has_a_row_or_a_reason() -> None:
    rows = {variant.registered for variant in VARIANTS if variant.kind != "known bad"}
    ours = {name for name in list_selectors() if type(create_selector(name)).__module__.startswith("dynavit.")}
    assert rows - {""} | LEFT_OUT.keys() == ours
    assert not rows & LEFT_OUT.keys()
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


def test_classes_are_told_by_the_foreground_alone() -> None:
    data = HiddenForeground(0, noise=0.0)
    tokens, labels, foreground = data.batch(500)
    assert foreground.sum(dim=1).tolist() == [NUM_FOREGROUND] * 500
    shown = torch.cdist(tokens[..., :16], data.prototypes).argmin(dim=-1)
    assert (shown[foreground] == labels.repeat_interleave(NUM_FOREGROUND)).all()
    # counting all tokens is misled by the decoy
    counted = torch.nn.functional.one_hot(shown, NUM_CLASSES).sum(dim=1).argmax(dim=1)
    assert (counted == labels).float().mean() < 0.5


def test_the_classifier_does_not_see_the_marker() -> None:
    torch.manual_seed(0)
    model = SelectiveClassifier()
    tokens, _, _ = HiddenForeground(0).batch(3)
    mask = torch.ones(3, NUM_TOKENS)
    changed = tokens.clone()
    changed[..., 16:] += 5.0
    assert torch.equal(model.classify(tokens, mask), model.classify(changed, mask))
    assert not torch.equal(model.scores(tokens), model.scores(changed))


def test_one_seed_gives_the_same_numbers_twice_and_another_seed_others() -> None:
    first, again, other = (train("gumbel_topk", seed, 10) for seed in (0, 0, 1))
    assert first == again
    assert first.predictor_gradients != other.predictor_gradients


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_predictor_learns_from_all_but_the_controls(variant: object) -> None:
    assert variant in VARIANTS
    run = train(variant.name, 0, 2)
    assert (max(run.predictor_gradients) > 0) == (variant.kind != "control")
    expected = {"all": 1.0}.get(variant.name)
    assert expected is None or run.foreground_recall == expected


def test_soft_top_k_is_annealed_by_the_study() -> None:
    variant = next(variant for variant in VARIANTS if variant.name == "soft_topk")
    assert [variant.temperature_at(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.1**0.5, 0.1])


@pytest.mark.slow
def test_selecting_is_learned_and_pays() -> None:
    rows = {row.variant: row for row in run_selection(seeds=[0], variants=["all", "none", "topk", "ste"])}
    for name in ("topk", "ste"):
        assert rows[name].foreground_recall.mean > 0.6
        for control in ("all", "none"):
            assert rows[name].accuracy.mean > rows[control].accuracy.mean + 0.3
