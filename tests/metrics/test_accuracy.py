import pytest
import torch

from dynavit import InputError
from dynavit.metrics import Accuracy, topk_accuracy


def test_matches_ranks_over_uneven_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(103, 9, generator=generator)
    targets = torch.randint(9, (103,), generator=generator)
    rank = (logits > logits.gather(1, targets[:, None])).sum(dim=1)
    accuracy = Accuracy()
    for start in range(0, 103, 25):
        accuracy.update(logits[start : start + 25], targets[start : start + 25])
    expected = {"top1": 100 * int((rank < 1).sum()) / 103, "top5": 100 * int((rank < 5).sum()) / 103}
    assert accuracy.compute() == expected
    assert topk_accuracy(logits.argsort(dim=1, descending=True)[:, :5], targets) == expected
    assert expected["top1"] < expected["top5"] < 100


def test_counts_are_exact_integers() -> None:
    accuracy = Accuracy(topk=(1,))
    accuracy.update(torch.tensor([[1.0, 0.0]]).repeat(3, 1).half(), torch.tensor([0, 1, 0]))
    assert int(accuracy.correct[1]) == 2
    assert accuracy.total == 3
    assert accuracy.compute() == {"top1": 200 / 3}


def test_a_model_that_says_the_same_of_every_class_is_not_right() -> None:
    accuracy = Accuracy()
    accuracy.update(torch.zeros(10, 10), torch.arange(10))
    assert accuracy.compute() == {"top1": 10.0, "top5": 50.0}


@pytest.mark.parametrize(("classes", "names"), [(4, ["top1"]), (5, ["top1", "top5"])])
def test_top5_needs_five_classes(classes: int, names: list[str]) -> None:
    accuracy = Accuracy()
    accuracy.update(torch.eye(classes), torch.arange(classes))
    assert list(accuracy.compute()) == names
    assert list(topk_accuracy(torch.eye(classes).argsort(descending=True), torch.arange(classes))) == names


def test_misuse_is_refused() -> None:
    with pytest.raises(InputError, match="nothing was counted"):
        Accuracy().compute()
    with pytest.raises(InputError, match="at least 1"):
        Accuracy(topk=(0, 1))
    accuracy = Accuracy()
    with pytest.raises(InputError, match=r"\(B, C\)"):
        accuracy.update(torch.zeros(2, 3), torch.zeros(2, 3))
    accuracy.update(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="10 classes after one with others"):
        accuracy.update(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64))
    for best in (torch.zeros(0, 5), torch.zeros(3, 5), torch.zeros(2)):
        with pytest.raises(InputError, match="one image or more"):
            topk_accuracy(best, torch.zeros(0 if best.numel() == 0 else 2))
