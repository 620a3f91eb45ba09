import warnings

import pytest
import torch
from scipy.stats import binomtest

from dynavit.evaluation.classes import class_rows, compare_classes, confusions
from dynavit.evaluation.drawings import spread_over_classes
from dynavit.report.classes import Classes, class_sections
from dynavit.tasks import Evaluation, Predicted
from dynavit.tasks.base import Detail

NAMES = ("ant", "bee", "cat", "dog")  # no image shows a dog
LABELS = torch.tensor([0] * 4 + [1] * 40 + [2])
DENSE = torch.tensor([0, 0, 0, 1] + [1] * 40 + [0])
PRUNED = torch.tensor([0, 0, 0, 0] + [1] * 20 + [3] * 15 + [2] * 5 + [2])

CONFUSIONS = {(0, 0): 4, (1, 1): 20, (1, 2): 5, (1, 3): 15, (2, 2): 1}


def predicted(answers: torch.Tensor) -> Predicted:
    return Predicted(torch.arange(len(answers)), LABELS, answers)


def evaluation(answers: torch.Tensor) -> Evaluation:
    hits = 100.0 * (answers == LABELS).double()
    return Evaluation({}, Detail(hits, torch.arange(len(hits))), None, predicted=predicted(answers))


def test_rows_hold_each_class_with_its_interval_what_loses_most_first() -> None:
    rows = class_rows(NAMES, predicted(PRUNED), predicted(DENSE))
    assert [(row["class"], row["images"], row["base_top1"], row["top1"]) for row in rows] == [
        ("bee", 40, 100, 50),
        ("ant", 4, 75, 100),
        ("cat", 1, 0, 100),
    ]
    assert [row["delta_top1"] for row in rows] == [-50, 25, 100]
    low, high = binomtest(20, 40).proportion_ci(method="wilson")
    assert (rows[0]["top1_low"], rows[0]["top1_high"]) == pytest.approx((100 * low, 100 * high))
    assert [row["p"] for row in rows] == [pytest.approx(2 * 0.5**20), 1, 1]  # of 20, 1 and 1 images that changed


def test_a_class_of_few_images_is_not_said_to_lose() -> None:
    """Of five images all of which were lost, chance does as much in 1 of 16; of six in 1 of 32."""
    for count, found in ((5, 0), (6, 1)):
        labels = torch.zeros(count, dtype=torch.int64)
        base, model = (Predicted(torch.arange(count), labels, labels + shift) for shift in (0, 1))
        classes = Classes(NAMES, class_rows(NAMES, model, base), confusions(model), "it", "the dense model")
        assert classes.rows[0]["p"] == pytest.approx(2 * 0.5**count)
        assert classes.summary().startswith(f"{found} of 1 classes" if found else "No class is told worse")


def test_the_model_as_trained_is_compared_with_the_dense_one() -> None:
    rows = [
        {"model": "dense", "top1": 90.0},
        {"model": "pruned", "keep_ratio": 0.7, "top1": 50.0},
        {"model": "pruned", "keep_ratio": 0.5, "top1": 50.0},
        {"model": "rival", "rival": "dense, 48 px", "image_size": [48, 48], "top1": 80.0},
    ]
    found = [evaluation(answers) for answers in (DENSE, PRUNED, DENSE, DENSE)]
    classes = compare_classes(rows, found, NAMES, deployed=1)
    assert classes is not None
    assert (classes.model, classes.base) == ("keep ratio 0.7", "the dense model")
    assert classes.confusions == CONFUSIONS
    # without it the row that prunes most, and by itself where none prunes
    most = compare_classes(rows, found, NAMES, deployed=9)
    assert most is not None
    assert most.model == "keep ratio 0.5"
    alone = compare_classes(rows[:1], found[:1], NAMES, deployed=0)
    assert alone is not None
    assert (alone.model, alone.base) == ("the dense model", None)
    assert [row["class"] for row in alone.rows] == ["cat", "ant", "bee"]
    assert compare_classes(rows[:1], [found[0]._replace(predicted=None)], NAMES, 0) is None


def test_what_is_said_of_classes() -> None:
    rows = class_rows(NAMES, predicted(PRUNED), predicted(DENSE))
    classes = Classes(NAMES, rows, CONFUSIONS, "keep ratio 0.7", "the dense model")
    assert classes.summary().startswith("1 of 3 classes are told worse at keep ratio 0.7 than by the dense model")
    assert "bee (-50.0)" in classes.summary()
    table, pairs = class_sections(classes)
    assert [column.cells for column in table.columns[:2]] == [["bee", "ant", "cat"], ["40", "4", "1"]]
    assert [column.cells for column in pairs.columns] == [["bee", "bee"], ["dog", "cat"], ["15", "5"], ["40", "40"]]
    assert len(table.images) == 1
    assert {(row["class"], row["taken_for"]): row["images"] for row in classes.confusion_rows()}["bee", "dog"] == 15
    right = Classes(
        NAMES, class_rows(NAMES, predicted(LABELS), predicted(LABELS)), confusions(predicted(LABELS)), "a", "b"
    )
    assert right.summary().startswith("No class is told worse")
    assert len(class_sections(right)) == 1  # nothing is confused


def test_many_classes_are_a_table_of_the_first_and_no_picture() -> None:
    names = [f"class {number}" for number in range(60)]
    labels = torch.arange(60).repeat(2)
    said = Predicted(torch.arange(120), labels, labels)
    (section,) = class_sections(Classes(names, class_rows(names, said), confusions(said), "the dense model"))
    assert len(section.columns[0].cells) == 20
    assert "all 60 are in classes.csv" in section.note
    assert not section.images


@pytest.mark.parametrize(("classes", "expected"), [(2, [0, 1, 0, 1]), (3, [0, 1, 2, 0]), (100, [0, 33, 66, 99])])
def test_examples_are_of_classes_far_apart(classes: int, expected: list[int]) -> None:
    labels = torch.arange(classes).repeat_interleave(2)
    places = spread_over_classes(Predicted(torch.arange(2 * classes), labels, labels), 4)
    assert labels[places].tolist() == expected
    assert len(set(places)) == 4
    assert len(spread_over_classes(Predicted(torch.arange(1), labels[:1], labels[:1]), 4)) == 1


def test_names_of_any_letters_are_drawn() -> None:
    names = ["US$ and $x_{", "\N{CJK UNIFIED IDEOGRAPH-72AC}", "\x1b[31m", "a" * 60]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as those of a sign that no font has
        section, *_ = class_sections(Classes(names, class_rows(names, predicted(PRUNED)), CONFUSIONS, "it"))
    assert len(section.images) == 1
    assert "\x1b" not in "".join(section.columns[0].cells)


def test_many_classes_take_no_matrix() -> None:
    labels = torch.arange(30_000)
    found = confusions(Predicted(labels, labels, labels.flip(0)))
    assert len(found) == 30_000
    assert found[0, 29_999] == 1
