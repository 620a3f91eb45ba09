"""Re-identification data by name: made up, in a benchmark's layout, or in folders of one's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dynavit.data.files import describe_skipped
from dynavit.data.pictures import UNREADABLE, open_picture
from dynavit.data.quickstart_reid import NUM_CAMERAS, SyntheticIdentities
from dynavit.data.quickstart_spectra import SPECTRA, SyntheticSpectra
from dynavit.data.reid_layouts import LAYOUTS, Layout, Record, Split, read_layout
from dynavit.data.samples import Samples
from dynavit.data.sources import given_root
from dynavit.data.spectral_layouts import SPECTRAL_LAYOUTS, is_spectral, read_spectral_layout
from dynavit.data.transforms import Transform
from dynavit.errors import InputError, did_you_mean
from dynavit.text import listed

QUICKSTART = "quickstart-reid"
MULTIMODAL = "quickstart-multimodal"
_QUICKSTART_OPTIONS = ("train_identities", "images_per_identity", "test_identities", "gallery_per_camera", "seed")


class ReidImages(Dataset[tuple[Any, int]]):
    """Image files, or tuples of them, one a spectrum, with the numbers of their identities.

    Args:
        records: what there is.
        identities: their numbers.
        spectra: how many there are; files of records that name none of their own show all of them side by side.
    """

    def __init__(self, records: Sequence[Record], identities: Sequence[int], spectra: int = 0) -> None:
        self.records = records
        self.identities = identities
        self.spectra = spectra

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        record = self.records[index]
        pictures: Any
        if record.spectra:
            pictures = tuple(None if path is None else _opened(path) for path in record.spectra)
        else:
            pictures = open_picture(record.path)
            if self.spectra:
                width = pictures.width // self.spectra
                lefts = [width * number for number in range(self.spectra)]
                pictures = tuple(pictures.crop((left, 0, left + width, pictures.height)) for left in lefts)
        return pictures, self.identities[index]

    def path(self, index: int) -> str:
        """Return the file of an image."""
        return str(self.records[index].path)


def _opened(path: Path) -> Image.Image:
    """Open one of several files of a sample, whose message names the first of them alone."""
    try:
        return open_picture(path)
    except UNREADABLE as error:
        raise OSError(f"of {path}, {error}") from error


@dataclass(frozen=True)
class ReidData:
    """What there is to train on and to search in.

    Identities, cameras and views are numbered from 0. Training and evaluation share the numbers of
    cameras and views; identities are numbered apart, since usually nobody is in both.

    Attributes:
        train: yields ``(image, identity, index)``; None where training was not asked for.
        validation: yields the same, first of all queries, then of the gallery.
        num_query: how many samples of ``validation`` are queries.
        class_names: keys of the training identities; empty where there is no training split.
        camera_names: keys of the cameras.
        view_names: keys of the views.
        train_identities: ``(len(train),)``, int64; the labels, without reading images.
        train_cameras: ``(len(train),)``, int64, -1 where unknown.
        train_views: the same of views.
        identities: ``(len(validation),)``, int64.
        cameras: ``(len(validation),)``, int64, -1 where unknown.
        views: the same of views.
        image_ids: ``(len(validation),)``, int64, the same number for the same file. Where query and
            gallery are one folder, an image must not be found as its own match.
        has_match: ``(num_query,)``, bool; whether the gallery has another image of the query's identity
            that is not known to be by the query's camera.
        notes: what was skipped and what deserves attention, one line each.
        spectra: names of the spectra, of which each sample is a tensor ``(M, C, H, W)``; () where it is an image.
        present: ``(len(validation), M)``, bool, which of them each sample has; None: all.
    """

    train: Samples | None
    validation: Samples
    num_query: int
    class_names: tuple[str, ...]
    camera_names: tuple[str, ...]
    view_names: tuple[str, ...]
    train_identities: Tensor
    train_cameras: Tensor
    train_views: Tensor
    identities: Tensor
    cameras: Tensor
    views: Tensor
    image_ids: Tensor
    has_match: Tensor
    notes: tuple[str, ...] = ()
    spectra: tuple[str, ...] = ()
    present: Tensor | None = None

    @property
    def num_cameras(self) -> int:
        """Number of cameras over all splits; 0 where none is known."""
        return len(self.camera_names)

    @property
    def num_views(self) -> int:
        """Number of views over all splits; 0 where none is known."""
        return len(self.view_names)

    def summary(self) -> str:
        """Return a table of identities, images and cameras, how many queries can be scored, and the notes."""
        n = self.num_query
        lines = [f"{'':<9}{'identities':>11}{'images':>11}{'cameras':>9}"]
        for name, identities, cameras in (
            ("train", self.train_identities, self.train_cameras),
            ("query", self.identities[:n], self.cameras[:n]),
            ("gallery", self.identities[n:], self.cameras[n:]),
        ):
            known = len(cameras[cameras >= 0].unique())
            lines.append(f"{name:<9}{len(identities.unique()):>11,}{len(identities):>11,}{known or '-':>9}")
        lines.append(f"{int(self.has_match.sum()):,} of {n:,} queries have a valid match.")
        return "\n".join([*lines, *self.notes])


def create_reid_data(
    name: str,
    root: str | None = None,
    *,
    transforms: tuple[Transform, Transform],
    seed: int = 0,
    train: bool = True,
    train_split: str = "train",
    corrupt: str = "stop",
    options: Mapping[str, Any] | None = None,
) -> ReidData:
    """Open the training images, the queries and the gallery of a data set.

    A query's valid matches are the gallery's images of its identity without those by the query's own
    camera (Zheng et al. 2015, Market-1501, section 3.2) and without the query's own file. Images of
    unknown camera are by no other image's camera. Queries without valid match stay in the data.

    Args:
        name: one of

            - ``"quickstart-reid"``: :class:`SyntheticIdentities`, which needs no files; ``options`` are
              ``train_identities``, ``images_per_identity``, ``test_identities``, ``gallery_per_camera`` and
              ``seed`` (0), by which the people are drawn: other seeds of a run train on the same ones;
            - ``"quickstart-multimodal"``: :class:`SyntheticSpectra`, likewise, in three spectra;
            - ``"market1501"``, ``"dukemtmc"``, ``"cuhk03np"``, ``"veri776"``, ``"msmt17"``: benchmarks, or
              one's own images in the layout of one;
            - ``"rgbnt201"``, ``"rgbnt100"``, ``"msvr310"``: benchmarks of three spectra, see
              :func:`read_spectral_layout`;
            - ``"folder"``: own images, see :func:`read_layout` for its ``options``; of several spectra with the option
              ``spectra``, see :func:`read_spectral_layout`.
        root: the data set's folder.
        transforms: of training and of evaluation images, see :func:`create_reid_transforms`.
        seed: of everything random in the data, not negative.
        train: whether to train. If not, a training split is still looked for, because it has a part in
            numbering the cameras, but it may be missing.
        train_split: see :func:`read_layout`.
        corrupt: ``"stop"`` or ``"skip"``, see :class:`Samples`.
        options: see ``name``.

    Raises:
        InputError: unknown name or option, missing files, fewer than two training identities, or no
            query with a valid match.

    Example:
        >>> from dynavit.data.transforms import create_reid_transforms
        >>> transforms = create_reid_transforms((96, 48), (0.5,) * 3, (0.5,) * 3)
        >>> data = create_reid_data("quickstart-reid", transforms=transforms)
        >>> image, identity, index = data.train[13]
        >>> image.shape, identity, index, data.num_query
        (torch.Size([3, 96, 48]), 1, 13, 200)
    """
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}.")
    options = options or {}
    if name in (QUICKSTART, MULTIMODAL):
        return _open_quickstart(name, transforms, seed, train, train_split, corrupt, options)
    layouts = {**LAYOUTS, **SPECTRAL_LAYOUTS, "folder": LAYOUTS["folder"]}
    if name not in layouts:
        known = (QUICKSTART, MULTIMODAL, *layouts)
        raise InputError(
            f"unknown re-identification data set {name!r}.{did_you_mean(name, known)} data.name is {', '.join(known)}."
        )
    spectral = is_spectral(name, options)
    expected = (SPECTRAL_LAYOUTS if spectral else LAYOUTS)[name]
    root = given_root(name, root, f"expected {expected}")
    read = read_spectral_layout if spectral else read_layout
    layout = read(name, root, train_split, train, options)
    return _open_layout(name, layout, expected, transforms, seed, train, corrupt)


def _open_quickstart(
    name: str,
    transforms: tuple[Transform, Transform],
    seed: int,
    train: bool,
    train_split: str,
    corrupt: str,
    options: Mapping[str, Any],
) -> ReidData:
    if train_split != "train":
        raise InputError(f"data.name={name} has the training split 'train' only, got {train_split!r}.")
    for key in options:
        if key not in _QUICKSTART_OPTIONS:
            raise InputError(
                f"data.name={name} has no data.options.{key}.{did_you_mean(key, _QUICKSTART_OPTIONS)} "
                f"Its options: {', '.join(_QUICKSTART_OPTIONS)}."
            )
    drawn = options.get("seed", 0)
    kind = SyntheticIdentities if name == QUICKSTART else SyntheticSpectra
    people = kind(True, options.get("train_identities"), options.get("images_per_identity", 12), seed=drawn)
    searched = kind(
        False, options.get("test_identities"), gallery_per_camera=options.get("gallery_per_camera", 3), seed=drawn
    )
    identities, cameras = torch.tensor(searched.identities), torch.tensor(searched.cameras)
    image_ids = torch.arange(len(searched))
    return ReidData(
        Samples(people, transforms[0], seed, True, corrupt) if train else None,
        Samples(searched, transforms[1], seed, False, corrupt),
        searched.num_query,
        class_names=tuple(str(number) for number in range(max(people.identities) + 1)),
        camera_names=tuple(str(number) for number in range(NUM_CAMERAS)),
        view_names=(),
        train_identities=torch.tensor(people.identities),
        train_cameras=torch.tensor(people.cameras),
        train_views=torch.full((len(people),), -1),
        identities=identities,
        cameras=cameras,
        views=torch.full((len(searched),), -1),
        image_ids=image_ids,
        has_match=_matches(searched.num_query, identities, cameras, image_ids)[0],
        spectra=() if name == QUICKSTART else SPECTRA,
    )


def _open_layout(
    name: str,
    layout: Layout,
    expected: str,
    transforms: tuple[Transform, Transform],
    seed: int,
    train: bool,
    corrupt: str,
) -> ReidData:
    # neighbours are of one identity, so that what Samples puts in the place of an unreadable image mostly is too
    learned = sorted(layout.train.records, key=lambda record: _natural(record.identity)) if layout.train else []
    searched = [*layout.query.records, *layout.gallery.records]
    num_query = len(layout.query.records)
    camera_names = _names(record.camera for record in [*learned, *searched])
    view_names = _names(record.view for record in [*learned, *searched])
    class_names = _names(record.identity for record in learned)
    if train and len(class_names) < 2:
        raise InputError(
            f"data.name={name}: training needs two identities at least, {layout.train and layout.train.source} has "
            f"only {class_names[0]}; expected {expected}."
        )
    labels = _numbers((record.identity for record in learned), class_names)
    identities = _numbers((r.identity for r in searched), _names(r.identity for r in searched))
    cameras = _numbers((record.camera for record in searched), camera_names)
    files: dict[Path, int] = {}
    image_ids = torch.tensor([files.setdefault(record.path, len(files)) for record in searched])
    has_match, reasons = _matches(num_query, identities, cameras, image_ids)
    if not has_match.any():
        way_out = _without_cameras(name) if "camera" in reasons else ""
        raise InputError(
            f"no query of {layout.query.source} has a valid match in {layout.gallery.source}: {reasons}.{way_out}"
        )
    notes = [] if has_match.all() else [f"Queries that cannot be scored: {reasons}."]
    notes += _notes(layout, learned, searched, labels, class_names)
    count = len(layout.spectra)
    present = None
    if any(None in record.spectra for record in searched):
        present = torch.tensor([[path is not None for path in record.spectra] for record in searched])
        notes += _missing(layout.spectra, present)
    return ReidData(
        Samples(ReidImages(learned, labels.tolist(), count), transforms[0], seed, True, corrupt) if train else None,
        Samples(ReidImages(searched, identities.tolist(), count), transforms[1], seed, False, corrupt),
        num_query,
        class_names,
        camera_names,
        view_names,
        train_identities=labels,
        train_cameras=_numbers((record.camera for record in learned), camera_names),
        train_views=_numbers((record.view for record in learned), view_names),
        identities=identities,
        cameras=cameras,
        views=_numbers((record.view for record in searched), view_names),
        image_ids=image_ids,
        has_match=has_match,
        notes=tuple(notes),
        spectra=layout.spectra,
        present=present,
    )


def _missing(spectra: Sequence[str], present: Tensor) -> list[str]:
    counts = dict(zip(spectra, (~present).sum(dim=0).tolist(), strict=True))
    shown = ", ".join(f"{name} of {count:,}" for name, count in counts.items() if count)
    return [f"Of {len(present):,} queries and gallery samples some spectra are missing: {shown}."]


def _without_cameras(name: str) -> str:
    """Say how images by one camera can be searched after all."""
    if name == "folder":
        return (
            " To let them count, read no cameras: leave the group camera out of data.options.pattern, or leave out "
            "data.options.camera_pattern."
        )
    return (
        " To let them count, read no cameras: data.name=folder with a data.options.pattern that names none, such as "
        r"'(?P<identity>\d+)_', and the folders in data.train_split, data.options.query_split and "
        "data.options.gallery_split."
    )


def _natural(key: str) -> tuple[bool, int, str]:
    """Sort whole numbers by value, before everything else."""
    return (False, int(key), key) if key.isdecimal() else (True, 0, key)


def _names(keys: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({key for key in keys if key is not None}, key=_natural))


def _numbers(keys: Iterable[str | None], names: Sequence[str]) -> Tensor:
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers.get(key, -1) for key in keys], dtype=torch.int64)


def _matches(num_query: int, identities: Tensor, cameras: Tensor, image_ids: Tensor) -> tuple[Tensor, str]:
    """Return which queries have a valid match, and in words why the others have none."""
    in_gallery: dict[int, list[int]] = defaultdict(list)
    for index, identity in enumerate(identities[num_query:].tolist(), start=num_query):
        in_gallery[identity].append(index)
    seen_by, images = cameras.tolist(), image_ids.tolist()
    has_match, reasons = [], {"absent": 0, "itself": 0, "camera": 0}
    for query, identity in enumerate(identities[:num_query].tolist()):
        others = [index for index in in_gallery[identity] if images[index] != images[query]]
        valid = [index for index in others if seen_by[query] < 0 or seen_by[index] != seen_by[query]]
        has_match.append(bool(valid))
        if not valid:
            reasons["camera" if others else "itself" if in_gallery[identity] else "absent"] += 1
    words = {
        "absent": "for {} the gallery has no image of the identity",
        "itself": "for {} the gallery has only the image itself",
        "camera": "for {} all images of the identity are by the query's own camera and do not count",
    }
    return torch.tensor(has_match), "; ".join(
        words[why].format(f"{count:,}") for why, count in reasons.items() if count
    )


def _notes(
    layout: Layout, learned: Sequence[Record], searched: Sequence[Record], labels: Tensor, class_names: Sequence[str]
) -> list[str]:
    notes = []
    if layout.train is None:
        notes.append("There is no training split: cameras are numbered by the queries and the gallery alone.")
    splits: dict[Path, Split] = {split.source: split for split in (layout.train, layout.query, layout.gallery) if split}
    for source, split in splits.items():
        if split.skipped:
            notes.append(f"Skipped in {source}: {describe_skipped(split.skipped)}.")
    cameras = {record.path: record.camera for record in (*learned, *searched)}
    unknown = [path.name for path, camera in cameras.items() if camera is None]
    if len(unknown) == len(cameras):
        notes.append("No cameras are known: nothing is left out as a match by the query's own camera.")
    elif unknown:
        notes.append(f"The camera is unknown of {len(unknown):,} images: {listed(unknown)}.")
    if learned and (single := [class_names[i] for i in torch.nonzero(torch.bincount(labels) == 1).flatten()]):
        notes.append(f"{len(single):,} training identities have only one image: {listed(single)}.")
    if shared := {record.identity for record in searched} & set(class_names):
        notes.append(
            f"{len(shared):,} identities are in training and in evaluation, so results say nothing about new "
            f"ones: {listed(sorted(shared, key=_natural))}."
        )
    return notes
