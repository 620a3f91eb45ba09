"""From folders of re-identification images to records of who was seen by which camera."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynavit.data.files import describe_skipped, find_images
from dynavit.errors import InputError, did_you_mean
from dynavit.text import listed

LAYOUTS: Mapping[str, str] = {
    "market1501": "ROOT/{bounding_box_train,query,bounding_box_test}/0002_c1s1_000451_03.jpg",
    "dukemtmc": "ROOT/{bounding_box_train,query,bounding_box_test}/0005_c2_f0046985.jpg",
    "cuhk03np": "ROOT/{bounding_box_train,query,bounding_box_test}/0001_c1_1.png, where ROOT is cuhk03-np/labeled "
    "or cuhk03-np/detected",
    "veri776": "ROOT/{image_train,image_query,image_test}/0001_c001_00016450_0.jpg",
    "msmt17": "ROOT/{train,test} (or {mask_train_v2,mask_test_v2}) and ROOT/list_{train,val,query,gallery}.txt",
    "folder": "ROOT/{train,query,gallery}/IDENTITY/*.jpg, or ROOT/{train,query,gallery}/*.jpg with "
    "data.options.pattern",
}
"""What each layout looks like on disk; those of several spectra are in :mod:`dynavit.data.spectral_layouts`."""


@dataclass(frozen=True)
class Record:
    """One image, or several of as many spectra: who was seen, by which camera, from which side.

    Keys are as in file names.

    Attributes:
        path: the image; of several the first.
        identity, camera, view: keys.
        spectra: the image of each spectrum, None where it is missing; () where there is one image.
    """

    path: Path
    identity: str
    camera: str | None = None
    view: str | None = None
    spectra: tuple[Path | None, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All its files."""
        return tuple(path for path in self.spectra if path is not None) or (self.path,)


@dataclass(frozen=True)
class Split:
    """The images of one folder or list.

    Attributes:
        source: the folder or list.
        records: sorted by path.
        skipped: names of what was left out, by reason.
    """

    source: Path
    records: tuple[Record, ...]
    skipped: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Layout:
    """All splits.

    Attributes:
        train: None where it was neither needed nor there.
        query, gallery: to search for, and in.
        spectra: their names; () where a record is one image of one spectrum. Records without ``spectra`` of their own
            show all of them side by side.
    """

    train: Split | None
    query: Split
    gallery: Split
    spectra: tuple[str, ...] = ()


# what a name says: (identity, camera, view), or why the image is skipped
Parsed = tuple[str, str | None, str | None] | str
Parser = Callable[[str], Parsed]


def read_layout(
    name: str,
    root: str | Path,
    train_split: str = "train",
    need_train: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Layout:
    """Find the images of a re-identification data set; no image is opened.

    In the benchmarks' layouts, identity -1 marks junk, which is skipped, and 0 marks distractors, which
    stay in the gallery but are neither trained on nor searched for. VeRi-776 has views where its root
    holds ``keypoint_train.txt`` and ``keypoint_test.txt`` (Wang et al. 2017, Orientation Invariant Feature
    Embedding).

    Args:
        name: a key of :data:`LAYOUTS`.
        root: the data set's folder.
        train_split: for ``msmt17`` ``"train"``, which is what results are compared on, or ``"train+val"``;
            for ``folder`` the folder's name; for the others ``"train"``.
        need_train: whether a missing training split is an error.
        options: for ``folder``:

            - ``query_split`` and ``gallery_split``: names of the folders, which may be the same;
            - ``pattern``: regular expression with the group ``identity`` and optionally ``camera`` and
              ``view``, searched for in an image's path below the split's folder. Without it, the folders
              in there are the identities;
            - ``camera_pattern``: regular expression with the group ``camera`` and optionally ``view``,
              searched for in an image's path below its identity's folder.

    Raises:
        InputError: unknown layout or option, missing folders, or a split without one usable image.
    """
    if name not in LAYOUTS:
        raise InputError(
            f"unknown re-identification layout {name!r}.{did_you_mean(name, LAYOUTS)} Known: {', '.join(LAYOUTS)}."
        )
    root, options = Path(root), options or {}
    known = ("query_split", "gallery_split", "pattern", "camera_pattern") if name == "folder" else ()
    check_request(name, root, options, known, LAYOUTS[name])
    if name == "msmt17":
        return _read_msmt17(root, train_split, need_train)
    if name == "folder":
        folders = (train_split, options.get("query_split", "query"), options.get("gallery_split", "gallery"))
        parse = folder_parser(options.get("pattern"), options.get("camera_pattern"))
        parsers: tuple[Parser, ...] = (parse,) * 3
    else:
        if train_split != "train":
            raise InputError(f"data.name={name} has the training split 'train' only, got {train_split!r}.")
        folders, parsers = _benchmark(name, root)
    has_train = check_folders(name, root, folders, need_train, LAYOUTS[name])
    splits = [
        read_folder(name, root / folder, parse, LAYOUTS[name]) if has_train or split else None
        for split, (folder, parse) in enumerate(zip(folders, parsers, strict=True))
    ]
    train, query, gallery = splits
    assert query is not None
    assert gallery is not None
    return Layout(train, query, gallery)


def check_request(name: str, root: Path, options: Mapping[str, Any], known: Sequence[str], expected: str) -> None:
    """Refuse options that a layout does not have, and a root that is no folder.

    Raises:
        InputError: naming what is wrong.
    """
    for key in options:
        if key not in known:
            raise InputError(
                f"data.name={name} has no data.options.{key}.{did_you_mean(key, known)} "
                f"Its options: {', '.join(known) or 'none'}."
            )
    if not root.is_dir():
        raise InputError(f"data.root={root} is not a folder; expected {expected}.")


def _benchmark(name: str, root: Path) -> tuple[tuple[str, str, str], tuple[Parser, ...]]:
    """Return the folders and the parsers of training, query and gallery names."""
    if name == "veri776":
        folders = ("image_train", "image_query", "image_test")
        views = _read_views(root)
    else:
        folders = ("bounding_box_train", "query", "bounding_box_test")
        views = {}
    return folders, tuple(numbered(views, distractors) for distractors in (False, False, True))


def numbered(views: Mapping[str, str], distractors: bool) -> Parser:
    """Return the parser of names that begin like 0002_c1."""

    def parse(name: str) -> Parsed:
        match = re.match(r"(-?\d+)_c(\d+)", name)
        if match is None:
            return "name without identity and camera"
        identity, camera = match.groups()
        if int(identity) < 0:
            return "junk (identity -1)"
        if int(identity) == 0 and not distractors:
            return "distractors (identity 0), which belong in the gallery"
        return identity, str(int(camera)), views.get(name)

    return parse


def _read_views(root: Path) -> dict[str, str]:
    """Return VeRi-776's views by file name: lines are a path, 20 keypoints and the view."""
    views = {}
    for path in (root / "keypoint_train.txt", root / "keypoint_test.txt"):
        if path.is_file():
            for words in map(str.split, path.read_text().splitlines()):
                if len(words) > 1:
                    views[words[0].rpartition("/")[2]] = words[-1]
    return views


def folder_parser(pattern: str | None, camera_pattern: str | None) -> Parser:
    """Return the parser of one's own names; see :func:`read_layout`."""
    if pattern is not None and camera_pattern is not None:
        raise InputError(
            "data.options.pattern and data.options.camera_pattern exclude each other: put a group "
            "(?P<camera>...) into pattern."
        )
    if pattern is not None:
        whole = _compile("pattern", pattern, "identity", ("identity", "camera", "view"))

        def parse(name: str) -> Parsed:
            groups = _search(whole, name)
            if groups.get("identity") is None:
                return "name that data.options.pattern does not match"
            return str(groups["identity"]), groups.get("camera"), groups.get("view")

        return parse
    inner = None
    if camera_pattern is not None:
        inner = _compile("camera_pattern", camera_pattern, "camera", ("camera", "view"))

    def parse_folder(name: str) -> Parsed:
        identity, _, rest = name.partition("/")
        if not rest:
            return "not in an identity's folder"
        groups = _search(inner, rest) if inner else {}
        return identity, groups.get("camera"), groups.get("view")

    return parse_folder


def _search(pattern: re.Pattern[str], name: str) -> dict[str, str | None]:
    match = pattern.search(name)
    return match.groupdict() if match else {}


def _compile(key: str, pattern: str, needed: str, known: Iterable[str]) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.options.{key}={pattern!r} is no regular expression: {error}.") from None
    if needed not in compiled.groupindex or set(compiled.groupindex) - set(known):
        raise InputError(
            f"data.options.{key}={pattern!r} needs the group (?P<{needed}>...) and knows {', '.join(known)}; "
            f"it has {', '.join(compiled.groupindex) or 'none'}."
        )
    return compiled


def check_folders(name: str, root: Path, folders: Sequence[str], need_train: bool, expected: str) -> bool:
    """Return whether there is a training folder, the first of those named.

    Raises:
        InputError: a folder that is needed is missing.
    """
    found = [(root / folder).is_dir() for folder in folders]
    needed = found if need_train else found[1:]
    if not all(needed):
        missing = dict.fromkeys(folder for folder, there in zip(folders, found, strict=True) if not there)
        others = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        inside = [other for other in others if all((root / other / folder).is_dir() for folder in folders)]
        hint = f" They are in {inside[0]}: set data.root={root / inside[0]}." if inside else ""
        raise InputError(
            f"data.root={root} has no folder {', '.join(missing)}; data.name={name} expects {expected}. "
            f"Found: {listed(others)}.{hint}"
        )
    return found[0]


def read_folder(name: str, folder: Path, parse: Parser, expected: str) -> Split:
    """Return the images below a folder that a parser makes sense of."""
    found = find_images(folder)
    records, skipped = [], defaultdict(list, {reason: list(names) for reason, names in found.skipped.items()})
    for path in found.paths:
        name_in_split = path.relative_to(folder).as_posix()
        parsed = parse(name_in_split)
        if isinstance(parsed, str):
            skipped[parsed].append(name_in_split)
        else:
            records.append(Record(path, *parsed))
    return checked_split(name, folder, records, skipped, expected)


def checked_split(
    name: str, source: Path, records: Sequence[Record], skipped: Mapping[str, Sequence[str]], expected: str
) -> Split:
    """Return a split.

    Raises:
        InputError: there is nothing in it.
    """
    if not records:
        raise InputError(
            f"{source} has no usable image: {describe_skipped(skipped) or 'it is empty'}. "
            f"data.name={name} expects {expected}."
        )
    return Split(source, tuple(records), dict(skipped))


def _read_msmt17(root: Path, train_split: str, need_train: bool) -> Layout:
    if train_split not in ("train", "train+val"):
        raise InputError(f"data.train_split of msmt17 is 'train' or 'train+val', got {train_split!r}.")
    train_folder, test_folder = ("mask_train_v2", "mask_test_v2") if _is_version_2(root) else ("train", "test")
    train_lists = [f"list_{part}.txt" for part in train_split.split("+")]
    needed = [test_folder, "list_query.txt", "list_gallery.txt"]
    train_needed = [train_folder, *train_lists]
    has_train = all((root / entry).exists() for entry in train_needed)
    missing = [entry for entry in [*needed, *(train_needed if need_train else [])] if not (root / entry).exists()]
    if missing:
        raise InputError(f"data.root={root} has no {', '.join(missing)}; data.name=msmt17 expects {LAYOUTS['msmt17']}.")
    train = None
    if has_train:
        parts = [_read_list(root / file, root / train_folder, "") for file in train_lists]
        skipped: dict[str, list[str]] = defaultdict(list)
        for part in parts:
            for reason, names in part.skipped.items():
                skipped[reason] += names
        records = sorted((record for part in parts for record in part.records), key=lambda record: record.path)
        train = Split(root / train_folder, tuple(records), dict(skipped))
    # training and test people are numbered from 0 both, but they are not the same
    query, gallery = (
        _read_list(root / f"list_{part}.txt", root / test_folder, "test-") for part in ("query", "gallery")
    )
    return Layout(train, query, gallery)


def _is_version_2(root: Path) -> bool:
    return (root / "mask_test_v2").is_dir()


def _read_list(path: Path, folder: Path, prefix: str) -> Split:
    """Read lines like ``0000/0000_000_01_0303morning_0008_0.jpg 0``: camera 1 of identity 0."""
    records, skipped = [], defaultdict(list)
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        match = re.fullmatch(r"((?:.*/)?\d+_\d+_(\d+)_[^/]*)\s+(\d+)", line)
        if match is None:
            skipped["line without path, camera and identity"].append(line)
            continue
        name, camera, identity = match.groups()
        if not (folder / name).is_file():
            skipped[f"listed, but not in {folder.name}"].append(name)
        else:
            records.append(Record(folder / name, prefix + identity, str(int(camera))))
    records.sort(key=lambda record: record.path)
    return checked_split("msmt17", path, records, skipped, LAYOUTS["msmt17"])
