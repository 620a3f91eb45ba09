"""From folders of re-identification images in several spectra to records that hold one of each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynavit.data.files import find_images
from dynavit.data.reid_layouts import (
    Layout,
    Parsed,
    Parser,
    Record,
    Split,
    check_folders,
    check_request,
    checked_split,
    folder_parser,
    numbered,
    read_folder,
)
from dynavit.errors import InputError
from dynavit.text import listed

SPECTRAL_LAYOUTS: Mapping[str, str] = {
    "rgbnt201": "ROOT/{train_171,test}/{RGB,NI,TI}/000258_cam1_0_00.jpg",
    "rgbnt100": "ROOT/{bounding_box_train,query,bounding_box_test}/0001_c1_0001.jpg, each three spectra side by side",
    "msvr310": "ROOT/{bounding_box_train,query3,bounding_box_test}/0001/{vis,ni,th}/0001_s001_v1_000.jpg",
    "folder": "ROOT/{train,query,gallery}/SPECTRUM/IDENTITY/*.jpg for each SPECTRUM in data.options.spectra, the "
    "images of a sample under one name",
}
"""What each layout looks like on disk."""

_SPECTRA = {"rgbnt201": ("RGB", "NI", "TI"), "rgbnt100": ("RGB", "NI", "TI"), "msvr310": ("vis", "ni", "th")}
_FOLDERS = {
    "rgbnt201": ("train_171", "test", "test"),
    "rgbnt100": ("bounding_box_train", "query", "bounding_box_test"),
    "msvr310": ("bounding_box_train", "query3", "bounding_box_test"),
}


def is_spectral(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the images of this data set come in several spectra."""
    return name in _SPECTRA or (name == "folder" and "spectra" in options)


def read_spectral_layout(
    name: str,
    root: str | Path,
    train_split: str = "train",
    need_train: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Layout:
    """Find the samples of a multi-spectral data set; no image is opened.

    Layouts and protocols are those of DeMo (Wang et al. 2025, https://arxiv.org/abs/2412.10650) and the sets it names:
    RGBNT201 searches its test images among themselves; RGBNT100 leaves out matches by the query's own camera, as
    Market-1501 does; in MSVR310 matches from the query's own scene are left out, so that scenes are its "cameras", and
    its cameras are views (a camera embedding, ``model.side``, would be one of scenes). Where spectra have files of
    their own, a sample that lacks some is searched with those that it has, and not trained on.

    Args:
        name: a key of :data:`SPECTRAL_LAYOUTS`.
        root: the data set's folder.
        train_split: for ``folder`` its folder's name; for the others ``"train"``.
        need_train: whether a missing training split is an error.
        options: for ``folder`` ``spectra``, names of two or more folders in each split's, and the other options of
            :func:`~dynavit.data.reid_layouts.read_layout`, which see what is below a spectrum's folder.

    Raises:
        InputError: unknown layout or option, missing folders, or a split without one usable sample.
    """
    root, options = Path(root), options or {}
    expected = SPECTRAL_LAYOUTS[name]
    known = ("spectra", "query_split", "gallery_split", "pattern", "camera_pattern") if name == "folder" else ()
    check_request(name, root, options, known, expected)
    if name == "folder":
        spectra = _checked_spectra(options["spectra"])
        folders = (train_split, options.get("query_split", "query"), options.get("gallery_split", "gallery"))
    else:
        if train_split != "train":
            raise InputError(f"data.train_split of {name} is 'train' only, got {train_split!r}.")
        spectra, folders = _SPECTRA[name], _FOLDERS[name]
    has_train = check_folders(name, root, folders, need_train, expected)
    parts: list[Split | None] = []
    for number, folder in enumerate(folders):
        if number == 0 and not has_train:
            parts.append(None)
        elif name == "rgbnt100":
            parts.append(read_folder(name, root / folder, numbered({}, distractors=number == 2), expected))
        else:
            parse = _parser(name, options)
            parts.append(_read(name, root / folder, spectra, parse, number == 0, expected))
    train, query, gallery = parts
    assert query is not None
    assert gallery is not None
    return Layout(train, query, gallery, spectra)


def _checked_spectra(spectra: Any) -> tuple[str, ...]:
    names = spectra if isinstance(spectra, Sequence) and not isinstance(spectra, str) else ()
    if len(names) < 2 or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise InputError(f"data.options.spectra={spectra!r}: give the names of two or more folders, such as [RGB,NI].")
    return tuple(names)


def _parser(name: str, options: Mapping[str, Any]) -> Parser:
    """Return what reads the name of a file below a split's folder, without the folder of its spectrum."""
    if name == "folder":
        return folder_parser(options.get("pattern"), options.get("camera_pattern"))
    return _rgbnt201 if name == "rgbnt201" else _msvr310


def _rgbnt201(name: str) -> Parsed:
    match = re.match(r"(\d{6})_cam(\d+)", name)
    return "name without identity and camera" if match is None else (match[1], match[2], None)


def _msvr310(name: str) -> Parsed:
    match = re.match(r"([^/]+)/.{6}(\d{3})..(\d)", name)
    return "name without scene and view" if match is None else (match[1], match[2], match[3])


def _read(name: str, folder: Path, spectra: Sequence[str], parse: Parser, train: bool, expected: str) -> Split:
    found = find_images(folder)
    skipped = defaultdict(list, {reason: list(names) for reason, names in found.skipped.items()})
    level = 1 if name == "msvr310" else 0  # of the folder of the spectrum
    samples: dict[str, dict[str, Path]] = defaultdict(dict)
    names: dict[str, str] = {}
    for path in found.paths:
        *above, file = path.relative_to(folder).parts
        spectrum = above.pop(level) if len(above) > level else ""
        key = "/".join([*above, Path(file).stem])
        if spectrum not in spectra:
            skipped[f"not in a folder {', '.join(spectra)}"].append(path.relative_to(folder).as_posix())
        elif spectrum in samples[key]:
            skipped["of the same name and spectrum as another"].append(path.relative_to(folder).as_posix())
        else:
            samples[key][spectrum] = path
            names.setdefault(key, "/".join([*above, file]))
    records = []
    for key in sorted(names):
        files = tuple(samples[key].get(spectrum) for spectrum in spectra)
        missing = [spectrum for spectrum, path in zip(spectra, files, strict=True) if path is None]
        parsed = parse(names[key])
        if isinstance(parsed, str):
            skipped[parsed].append(names[key])
        elif missing and train:
            skipped[f"without {listed(missing)}, which training needs"].append(names[key])
        else:
            first = next(path for path in files if path is not None)
            records.append(Record(first, *parsed, spectra=files))
    return checked_split(name, folder, records, skipped, expected)
