"""With balanced class weights every class counts alike in the cross-entropy."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset

import dynavit
from dynavit.config import Config
from dynavit.data.classification import ClassificationData
from dynavit.data.samples import Samples, StreamSamples
from dynavit.tasks import create_task
from dynavit.tasks.objective import Objective

LABELS = [0] * 8 + [1] * 2 + [3]


class Labelled(Dataset[Any]):
    targets = LABELS

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("no image is read to count classes")


class Silent(Dataset[Any]):
    def __len__(self) -> int:
        return 3


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def objective(source: Dataset[Any], weights: str = "balanced") -> Objective:
    wrap = StreamSamples if isinstance(source, IterableDataset) else Samples
    train = wrap(source, lambda image: image, 0, True)
    config = Config()
    config.loss.class_weights = weights
    model = dynavit.create_model("test_vit", num_classes=4, img_size=32)
    return create_task(config).objective(ClassificationData(train, train, tuple("abcd")), model, None, None)


def test_weights_are_balanced_and_those_of_absent_classes_do_not_matter() -> None:
    made = objective(Labelled())
    expected = compute_class_weight("balanced", classes=torch.tensor([0, 1, 3]).numpy(), y=torch.tensor(LABELS).numpy())
    assert made.weights.tolist() == pytest.approx([expected[0], expected[1], 0, expected[2]])
    assert made.weights[LABELS].mean() == pytest.approx(1)


def test_every_class_counts_alike_over_batches_of_any_size() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(len(LABELS), 4), torch.tensor(LABELS)
    balanced, plain = objective(Labelled()), objective(Labelled(), "none")
    each = F.cross_entropy(logits, labels, reduction="none")
    by_class = torch.stack([each[labels == label].mean() for label in (0, 1, 3)])
    for size in (1, 3, len(LABELS)):
        batches = zip(logits.split(size), labels.split(size), strict=True)
        parts = [balanced.task_losses(some, of)["task"][0] * len(of) for some, of in batches]
        torch.testing.assert_close(sum(parts) / len(LABELS), by_class.mean())
    torch.testing.assert_close(plain.task_losses(logits, labels)["task"][0], each.mean())
    # and of mixed targets
    mixed = F.one_hot(labels, 4).float()
    torch.testing.assert_close(balanced.task_losses(logits, mixed)["task"][0], by_class.mean())


@pytest.mark.parametrize(("source", "why"), [(Silent(), "does not say"), (Stream(), "read in order")])
def test_what_cannot_be_counted_is_refused(source: Dataset[Any], why: str) -> None:
    with pytest.raises(dynavit.InputError, match=rf"loss\.class_weights=balanced: .*{why}.*none"):
        objective(source)


def test_a_run_takes_them(tiny: Callable[..., Config]) -> None:
    from dynavit.training.trainer import Trainer

    trainer = Trainer(tiny("loss.class_weights=balanced", "train.epochs=1"))
    counts = trainer.setup.data.class_counts()
    assert sum(counts) == len(trainer.setup.data.train)
    assert trainer.setup.objective.weights.tolist() == pytest.approx([sum(counts) / (len(counts) * n) for n in counts])
    trainer.fit()
