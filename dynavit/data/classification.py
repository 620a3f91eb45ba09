"""Classification data by name: made up, in folders, of torchvision, or whatever timm reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from timm.data.readers.reader import Reader
from torch.utils.data import Dataset, IterableDataset

from dynavit.data.labelled import ImageFiles, common_classes
from dynavit.data.quickstart import CLASS_NAMES
from dynavit.data.samples import Samples, StreamSamples, as_label, collate
from dynavit.data.sources import LAYOUT, Request, open_split
from dynavit.data.splits import Wanted, find_splits
from dynavit.data.transforms import Transform
from dynavit.errors import InputError
from dynavit.text import listed, printable

__all__ = ["ClassificationData", "Samples", "StreamSamples", "collate", "create_classification_data"]


@dataclass(frozen=True)
class ClassificationData:
    """What there is to train on and to evaluate on.

    Attributes:
        train: yields ``(image, label, index)``; a :class:`Samples`, or a :class:`StreamSamples` for
            data that can only be read in order. None where no training split was asked for.
        validation: the same.
        class_names: in the order of the labels.
        notes: what was passed over and what deserves attention, one line each.
    """

    train: Dataset[Any] | None
    validation: Dataset[Any]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def class_counts(self) -> list[int]:
        """Return how many training images each class has, as far as labels are known without reading the images.

        Raises:
            InputError: they are not.
        """
        if not isinstance(self.train, Samples):
            raise InputError("classes of training images that can only be read in order cannot be counted before.")
        labels = _labels(_source(self.train.dataset))
        if labels is None or len(labels) != len(self.train):
            raise InputError("this data set does not say which class each image has.")
        return np.bincount(labels, minlength=len(self.class_names)).tolist()

    def summary(self) -> str:
        """Return the first classes, how many images there are where that is known, and the notes."""
        lines = [f"Classes: {listed(self.class_names)}."]
        if isinstance(self.train, Samples) and isinstance(self.validation, Samples):
            lines.append(f"{len(self.train):,} training and {len(self.validation):,} validation images.")
        return "\n".join([" ".join(lines), *self.notes])


def create_classification_data(
    name: str,
    root: str | None = None,
    *,
    transforms: tuple[Transform, Transform],
    seed: int = 0,
    train: bool = True,
    train_split: str | None = "train",
    validation_split: str = "val",
    download: bool = False,
    corrupt: str = "stop",
    options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> ClassificationData:
    """Open the training and the validation split of a data set.

    Args:
        name: one of

            - ``"quickstart"``: :class:`ClutteredDigits`, which needs no files; ``options`` are
              ``fragments``, ``train_size`` and ``validation_size``;
            - ``"folder"``: image files of one's own, see below;
            - ``"torchvision/NAME"``: a data set of torchvision, such as ``"torchvision/CIFAR10"``;
              ``options`` are more of its arguments. Those that only tell training from test images
              validate on the test images;
            - anything else with a slash: as ``timm.data.create_dataset`` understands it, such as
              ``"hfds/NAME"`` or ``"wds/NAME"`` (which download by themselves), or ``"torch/NAME"``;
              ``options`` are more arguments of that function.
        root: where the files are, or where to put them.
        transforms: of training and of validation images, see :func:`create_transforms`.
        seed: of everything random in the data, not negative.
        train: whether to train. If not, the validation split alone is opened.
        train_split: name of the training split; None is for data without one.
        validation_split: name of the validation split.
        download: fetch what is missing, where the data set knows how.
        corrupt: ``"stop"`` or ``"skip"``, see :class:`Samples`. What streams do about damaged images is
            timm's decision; about those of unknown range see :class:`StreamSamples`.
        options: see ``name``. For data that does not know its classes, ``num_classes`` is understood
            for every set of torchvision and timm.
        class_names: of a model that is to be evaluated; labels are its numbers of the classes. Those of the training
            split if None.

    ``data.name=folder`` understands these:

    - ``root/train/CLASS/*.jpg`` and ``root/val/CLASS/*.jpg``. Where a split has its default name but no such folder,
      ``training`` is found, and ``valid``, ``validation``, ``dev``, ``test`` or ``testing``, the first in this order,
      in upper or lower case and with ``_set`` behind it; other names are taken literally. Every folder in a split is
      a class, except hidden ones and those of operating systems. Validation may lack some of the classes.
    - ``root/CLASS/*.jpg``, or a training split alone, with ``options={"validation_fraction": 0.2}``: that part of
      each class is for validation, one image of two at least. The seed and the files' names decide which, so
      training, evaluation and a resumed run agree; another seed, and files that are added, change it.
    - ``options={"labels": "train.csv"}``: a table in ``root``, UTF-8 with commas, semicolons or tabs, whose first line
      names the columns: the first of ``image, file, filename, file_name, path, id, image_id`` that there is, with a
      note where there are several (or ``image_column``), and the only one of ``label, class, category, target`` (or
      ``label_column``). Images are below ``root``, else below
      ``root/images`` (or ``images``), and their endings may be left out. For validation there is a column ``split``
      with the names of the splits, or ``validation_fraction``, or a second table, ``validation_labels``.

    Raises:
        InputError: unknown name or option, missing files, or splits that do not fit each other.

    Example:
        >>> from dynavit.data.transforms import create_transforms
        >>> transforms = create_transforms(64, (0.5,) * 3, (0.5,) * 3)
        >>> data = create_classification_data("quickstart", transforms=transforms)
        >>> image, label, index = data.train[7]
        >>> image.shape, index, data.class_names[:3]
        (torch.Size([3, 64, 64]), 7, ('0', '1', '2'))
    """
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}.")
    options, train = options or {}, train and train_split is not None
    if name == "folder":
        wanted = Wanted(root, train, "train" if train_split is None else train_split, validation_split, seed, options)
        return _open_files(wanted, transforms, corrupt, class_names)

    def request(split: str, is_train: bool) -> Request:
        return Request(name, root, split, is_train, seed, download, options)

    training = open_split(request(train_split, True)) if train and train_split is not None else None
    validation = open_split(request(validation_split, False))
    classes = tuple(CLASS_NAMES) if name == "quickstart" else _common_classes(name, training, validation, options)
    if class_names is not None and tuple(class_names) != classes:
        raise InputError(
            f"the data have the classes {listed(classes)} and the model {listed(class_names)}: evaluate on data of the "
            f"same classes."
        )
    return ClassificationData(
        None if training is None else _wrap(training, transforms[0], seed, True, corrupt),
        _wrap(validation, transforms[1], seed, False, corrupt),
        classes,
    )


def _open_files(
    wanted: Wanted, transforms: tuple[Transform, Transform], corrupt: str, class_names: Sequence[str] | None
) -> ClassificationData:
    splits = find_splits(wanted)
    classes, notes = common_classes(splits.train, splits.validation, class_names)
    train = None
    if splits.train is not None:
        train = Samples(ImageFiles(splits.train, classes), transforms[0], wanted.seed, True, corrupt)
    validation = Samples(ImageFiles(splits.validation, classes), transforms[1], wanted.seed, False, corrupt)
    return ClassificationData(train, validation, classes, tuple(printable(note) for note in (*splits.notes, *notes)))


def _wrap(dataset: Dataset[Any], transform: Transform, seed: int, train: bool, corrupt: str) -> Dataset[Any]:
    if isinstance(dataset, IterableDataset):
        return StreamSamples(dataset, transform, seed, train, corrupt)
    return Samples(dataset, transform, seed, train, corrupt)


def _common_classes(
    name: str, train: Dataset[Any] | None, validation: Dataset[Any], options: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the class names that both splits have.

    Raises:
        InputError: they differ, or are not known.
    """
    splits = [_source(split) for split in (train, validation) if split is not None]
    first, last = splits[0], splits[-1]
    if train is not None and _same_files(first, last):
        raise InputError(f"{name}: training and validation would both read all of {first.root}; {LAYOUT}.")
    first, last = _class_names(first), _class_names(last)
    if first is None or last is None:
        count = options.get("num_classes")
        if count is None:
            labels = [_labels(split) for split in splits]
            if None in labels:
                raise InputError(f"{name} does not say which classes it has: give data.options.num_classes.")
            count = 1 + max(label for found in labels for label in found or ())
        return tuple(str(label) for label in range(count))
    if first != last:
        raise InputError(
            f"the classes of {name} differ; only in the training split: {listed(sorted({*first} - {*last}))}; "
            f"only in the validation split: {listed(sorted({*last} - {*first}))}."
        )
    return first


def _source(dataset: Any) -> Any:
    """Return what knows the files and classes: timm's reader, or the data set itself."""
    return getattr(dataset, "reader", dataset)


def _same_files(first: Any, last: Any) -> bool:
    """Find out whether timm reads all of the root, as it does where no folder has the split's name."""
    if not hasattr(first, "samples"):
        return False
    is_timms = isinstance(first, Reader)
    return bool(first.root == last.root if is_timms else first.samples == last.samples)


def _class_names(source: Any) -> tuple[str, ...] | None:
    if classes := getattr(source, "classes", None):
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in classes)
    if labels := getattr(source, "class_to_idx", getattr(source, "class_name_to_idx", None)):
        names = {label: name for name, label in labels.items()}
        return tuple(str(names.get(label, label)) for label in range(max(names) + 1))
    return None


def _labels(source: Any) -> list[int] | None:
    """Return the labels of a data set without reading its images; None if it does not tell."""
    if hasattr(source, "iter_targets"):
        labels: Iterable[Any] = source.iter_targets()
    elif hasattr(source, "_samples"):
        labels = (label for _, label in source._samples)
    elif hasattr(source, "targets") or hasattr(source, "labels"):
        labels = source.targets if hasattr(source, "targets") else source.labels
    else:
        return None
    return [as_label(label) for label in labels]
