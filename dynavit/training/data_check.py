"""Is something wrong with these pictures? Asked by ``dynavit check``, and at the start of every training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from dynavit.config import Config
from dynavit.data.classification import ClassificationData
from dynavit.data.files import describe_skipped, find_images
from dynavit.data.inspection import Findings, inspect_files
from dynavit.data.labelled import ImageFiles, LabelledFiles, common_classes, require_two, visible_folders
from dynavit.data.reid import ReidData, ReidImages
from dynavit.data.splits import FRACTION, Wanted, find_splits, is_class_folder, nested, split_name
from dynavit.errors import InputError
from dynavit.models import PrunedViT
from dynavit.runs.build import build_outline, resolve_preprocessing
from dynavit.tasks import create_task
from dynavit.text import listed, printable

_MOST_DECODED = 50_000
"""Files that are read to their end when a training starts; of more the headers are looked at."""
_LISTED = 5
_FEW_CLASSES = 20
_ODD_RATIO = 5


@dataclass(frozen=True)
class DataReport:
    """What a data check found.

    Attributes:
        splits: the files by the name of their split.
        findings: what is in them.
        notes: what was passed over, one line each.
        patch_size: ``(height, width)`` of the model's patches in pixels; None where no model is known.
        problems: why a training would stop, one line each.
    """

    splits: Mapping[str, LabelledFiles]
    findings: Findings
    notes: Sequence[str] = ()
    patch_size: tuple[int, int] | None = None
    problems: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return all of it as text."""
        lines = []
        for name, files in self.splits.items():
            lines += [f"{name}: {len(files.paths):,} images in {printable(str(files.source))}", *_counts(files)]
        sizes = self.findings.sizes
        if sizes:
            small, large = min(sizes, key=min), max(sizes, key=max)
            lines.append(
                f"shortest side {min(small)} pixels ({_named(sizes[small][1])}), longest {max(large):,} "
                f"({_named(sizes[large][1])})"
            )
        lines += [*self.notes, *self.remarks()]
        unreadable = [f"  {_named(path)}: {reason}" for path, reason in self.findings.unreadable.items()]
        if unreadable:
            lines += [f"{len(unreadable):,} files cannot be read:", *unreadable]
        elif self.findings.decoded:
            lines.append("All files can be read.")
        return [printable(line) for line in lines]

    def remarks(self) -> list[str]:
        """Return what deserves attention, but stops nothing."""
        found, remarks = self.findings, []
        odd = {size: what for size, what in found.sizes.items() if max(size) > _ODD_RATIO * min(size)}
        if odd:
            worst = max(odd, key=lambda size: max(size) / min(size))
            remarks.append(
                f"{_total(odd):,} images are more than {_ODD_RATIO} times as long as wide, such as "
                f"{_named(odd[worst][1])} with {worst[0]:,} x {worst[1]:,} pixels."
            )
        if self.patch_size is not None:
            height, width = self.patch_size
            tiny = {size: what for size, what in found.sizes.items() if size[0] < width or size[1] < height}
            if tiny:
                remarks.append(
                    f"{_total(tiny):,} images are smaller than one patch of the model ({width} x {height} pixels), "
                    f"such as {_named(tiny[min(tiny)][1])}."
                )
        if found.shared:
            one, other = found.shared[0]
            remarks.append(
                f"{len(found.shared):,} files of validation are in training too, so results will look too good: "
                f"{_named(other)} is {_named(one)}."
            )
        return remarks

    def unreadable_files(self) -> str:
        """Return how many files cannot be read, with the first of them."""
        shown = [f"{_named(path)} ({reason})" for path, reason in self.findings.unreadable.items()]
        if len(shown) == 1:
            ((path, reason),) = self.findings.unreadable.items()
            return f"{_named(path)} cannot be read: {reason}"
        more = f", and {len(shown) - _LISTED:,} more" if len(shown) > _LISTED else ""
        return f"{len(shown):,} files cannot be read: {', '.join(shown[:_LISTED])}{more}"


def check_data(config: Config) -> DataReport:
    """Look at all files of a configuration's data.

    Raises:
        InputError: no files to look at, or no data that a training would begin with.
    """
    data = config.data
    model = build_outline(config)
    preprocessing = resolve_preprocessing(data, model.backbone)
    problems: list[str] = []
    if config.task == "classify" and data.name == "folder":
        wanted = Wanted(data.root, True, data.train_split, data.validation_split, config.seed, data.options)
        found = find_splits(wanted)  # to be counted, also where they cannot be trained on
        splits, notes = _splits(found.train, found.validation), list(found.notes)
        try:
            notes = list(create_task(config).open_data(preprocessing).notes)
        except InputError as error:
            problems.append(str(error))
    else:
        opened = create_task(config).open_data(preprocessing)
        known = _files_of(opened, data.root)
        if known is None:
            raise InputError(f"data.name={data.name}: only image files can be checked, of data.name=folder or re-id.")
        splits, notes = known, list(opened.notes)
    return _report(splits, notes, _patch_size(model), data.corrupt, problems)


def check_folder(folder: str) -> DataReport:
    """Look at all files of a folder: with splits, of classes without splits, or of images alone.

    Raises:
        InputError: no such folder, no images, or splits that a training would not begin with.
    """
    root = Path(folder)
    if not folder or not root.is_dir():
        raise InputError(f"{folder!r} does not exist, or is no folder: --images takes a folder with pictures.")
    names = visible_folders(root)
    splits_found = [name for name in (split_name("train", names), split_name("val", names)) if name is not None]
    hinted: list[str] = []
    options: dict[str, Any] = {}
    if all(is_class_folder(root / name) for name in splits_found):
        if not names or is_class_folder(root):
            found = find_images(root)
            if not found.paths:
                raise InputError(f"{folder} holds no images.")
            files = LabelledFiles(root, found.paths, ("",) * len(found.paths), ("",))
            notes = [f"Skipped: {printable(describe_skipped(found.skipped))}."] if found.skipped else []
            return _report({"images": files}, notes, None, "stop", [])
        # splits in the one folder that is there are not for dividing: what a training says of them is said
        if splits_found or len(nested(root, names, "train", "val")) != 1:
            options = {"validation_fraction": 0.2}
            hinted = [f"There are no splits: train with {FRACTION}, as is done here."]
    splits = find_splits(Wanted(folder, True, "train", "val", 0, options))
    problems: list[str] = []
    try:
        classes, class_notes = common_classes(splits.train, splits.validation)
        hinted += class_notes
        require_two(classes)
    except InputError as error:
        problems.append(str(error))
    return _report(_splits(splits.train, splits.validation), [*splits.notes, *hinted], None, "stop", problems)


def check_before_training(config: Config, data: Any, model: PrunedViT, accelerator: Accelerator) -> None:
    """Refuse files that a training would stop at; say what deserves attention.

    Unchanged files are not looked at again. Data that are no files are left alone.

    Raises:
        InputError: there are unreadable files and ``data.corrupt`` is ``stop``, or nothing else to train on, as a
            whole or for one class.
    """
    splits = _files_of(data, config.data.root)
    if splits is None:
        return
    problem: list[str | None] = [None]
    if accelerator.is_main_process:
        number = sum(len(files.paths) for files in splits.values())
        decode = number <= _MOST_DECODED
        findings = _inspect(splits, decode, remember=True)
        report = DataReport(splits, findings, patch_size=_patch_size(model))
        problem = [_refusal(report, config.data.corrupt)]
        if problem[0] is None:
            if findings.unreadable:
                accelerator.print(f"{report.unreadable_files()}. What cannot be read is skipped (data.corrupt=skip).")
            else:
                unchanged = ", unchanged since they were looked at before" if findings.remembered else ""
                accelerator.print(f"Data check: {number:,} files, all can be read{unchanged}.")
            if not decode:
                accelerator.print("Only their headers were looked at; `dynavit check` reads them to the end.")
            for remark in report.remarks():
                accelerator.print(remark)
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise InputError(problem[0])


def _report(
    splits: Mapping[str, LabelledFiles],
    notes: Sequence[str],
    patch_size: tuple[int, int] | None,
    corrupt: str,
    problems: Sequence[str],
) -> DataReport:
    report = DataReport(splits, _inspect(splits), notes, patch_size)
    refusal = _refusal(report, corrupt)
    return replace(report, problems=[*problems, *([refusal] if refusal else [])])


def _refusal(report: DataReport, corrupt: str) -> str | None:
    """Return why a training would stop at these files."""
    unreadable = report.findings.unreadable
    for name, files in report.splits.items():
        if files.paths and all(path in unreadable for path in files.paths):
            return f"not one image for {name} in {files.source} can be read; {report.unreadable_files()}."
    if train := report.splits.get("train"):
        readable = {name for path, name in zip(train.paths, train.names, strict=True) if path not in unreadable}
        if lost := [name for name in train.classes if name not in readable]:
            return (
                f"no training image of {listed(lost)} in {train.source} can be read, and what has none cannot be "
                f"learned; {report.unreadable_files()}. Replace such files, or remove all of what has no others."
            )
    if unreadable and corrupt == "stop":
        return f"{report.unreadable_files()}. Replace or remove them, or set data.corrupt=skip."
    return None


def _inspect(splits: Mapping[str, LabelledFiles], decode: bool = True, remember: bool = False) -> Findings:
    train = splits["train"].paths if "train" in splits else ()
    others = [path for name, files in splits.items() if name != "train" for path in files.paths]
    return inspect_files(train, others, decode, remember)


def _splits(train: LabelledFiles | None, validation: LabelledFiles) -> dict[str, LabelledFiles]:
    return {"validation": validation} if train is None else {"train": train, "validation": validation}


def _files_of(data: Any, root: str | None) -> dict[str, LabelledFiles] | None:
    """Return the files of opened data, with their classes; None where the data are no files of one's own."""
    if isinstance(data, ClassificationData):
        train, validation = (getattr(samples, "dataset", None) for samples in (data.train, data.validation))
        if isinstance(train, ImageFiles) and isinstance(validation, ImageFiles):
            return _splits(train.files, validation.files)
    elif isinstance(data, ReidData) and data.train is not None and isinstance(data.train.dataset, ReidImages):
        searched = data.validation.dataset.records
        parts = {
            "train": data.train.dataset.records,
            "query": searched[: data.num_query],
            "gallery": searched[data.num_query :],
        }
        return {
            name: LabelledFiles(
                Path(root or "."),
                tuple(path for record in records for path in record.files),
                tuple(record.identity for record in records for _ in record.files),
                tuple(sorted({record.identity for record in records})),
            )
            for name, records in parts.items()
        }
    return None


def _patch_size(model: PrunedViT) -> tuple[int, int] | None:
    size, grid = model.adapter.image_size, model.adapter.grid_size
    return None if size is None else (size[0] // grid[0], size[1] // grid[1])


def _counts(files: LabelledFiles) -> list[str]:
    """Return how many images classes have: each, or where there are many, the extremes."""
    counts = Counter(files.names)
    counts.update(dict.fromkeys((*files.classes, *files.empty), 0))
    if len(counts) == 1:
        return []
    if len(counts) <= _FEW_CLASSES:
        return ["  " + printable(", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))]
    ranked = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    least, most = (f"{count:,} ({printable(name)})" for name, count in (ranked[0], ranked[-1]))
    empty = [name for name, count in ranked if not count]
    lines = [f"  {len(counts):,} classes, with {least} to {most} images, half of them {ranked[len(ranked) // 2][1]:,}"]
    return lines + ([f"  without images: {listed(empty)}"] if empty else [])


def _named(path: Path) -> str:
    return printable(str(path))


def _total(sizes: Mapping[tuple[int, int], tuple[int, Path]]) -> int:
    return sum(count for count, _ in sizes.values())
