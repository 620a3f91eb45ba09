import pytest
import torch

from dynavit import InputError
from dynavit.metrics import topk_accuracy


def test_matches_ranks() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(103, 9, generator=generator)
    targets = torch.randint(9, (103,), generator=generator)
    rank = (logits > logits.gather(1, targets[:, None])).sum(dim=1)
    expected = {"top1": 100 * int((rank < 1).sum()) / 103, "top5": 100 * int((rank < 5).sum()) / 103}
    assert topk_accuracy(logits.argsort(dim=1, descending=True)[:, :5], targets) == expected
    assert expected["top1"] < expected["top5"] < 100


@pytest.mark.parametrize(("classes", "names"), [(4, ["top1"]), (5, ["top1", "top5"])])
def test_top5_needs_five_classes(classes: int, names: list[str]) -> None:
    assert list(topk_accuracy(torch.eye(classes).argsort(descending=True), torch.arange(classes))) == names


def test_misuse_is_refused() -> None:
    for best in (torch.zeros(0, 5), torch.zeros(3, 5), torch.zeros(2)):
        with pytest.raises(InputError, match="one image or more"):
            topk_accuracy(best, torch.zeros(0 if best.numel() == 0 else 2))
