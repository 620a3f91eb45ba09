"""Looking into files, and remembering it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dynavit.data.inspection import Findings, inspect_files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/dynavit/data-checks"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for number in range(6):
        path = tmp_path / f"{number}.jpg"
        Image.effect_noise((40 + number // 3, 30), 90).save(path)
        paths.append(path)
    return paths


def look(files: Sequence[Path]) -> Findings:
    return inspect_files(files[:4], files[4:], remember=True)


def test_unreadable_files_of_many_kinds(files: Sequence[Path]) -> None:
    whole = files[1].read_bytes()
    files[0].write_bytes(b"")
    files[1].write_bytes(whole[: len(whole) // 2])
    files[2].write_text("<html>404</html>")
    files[4].unlink()
    found = look(files)
    assert set(found.unreadable) == {files[0], files[1], files[2], files[4]}
    assert found.unreadable[files[0]] == "it is empty"
    assert "truncated" in found.unreadable[files[1]]
    assert found.unreadable[files[2]] == "it is no image that Pillow knows"
    assert found.sizes == {(41, 30): (2, files[3])}
    headers = inspect_files(files[:4], files[5:], decode=False)
    assert set(headers.unreadable) == {files[0], files[2]}


def test_the_same_content_in_both_splits(files: Sequence[Path]) -> None:
    files[5].write_bytes(files[2].read_bytes())
    assert look(files).shared == [(files[2], files[5])]


def test_findings_are_remembered_until_something_changes(files: list[Path], cache: Path) -> None:
    files[1].write_bytes(b"nothing")
    first = look(files)
    assert not first.remembered
    again = look(files)
    assert again.remembered
    assert (again.unreadable, again.sizes, again.shared) == (first.unreadable, first.sizes, first.shared)
    os.utime(files[0], ns=(1, 1))
    assert not look(files).remembered
    files[1].write_bytes(b"nothing more")
    assert not look(files).remembered
    assert not inspect_files(files[:3], files[3:], remember=True).remembered
    assert not inspect_files(files[:4], files[4:]).remembered


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", '{"unreadable": [], "sizes": [], "shared": []}', '{"unreadable": 3, "sizes": [], "shared": []}',
        '{"unreadable": [], "sizes": [[40, 30, 6, 99]], "shared": []}', '{"unreadable": [[-1, "x"]]}',
        "\x00\x01", "9" * 5000,
        "[" * 100_000, '{"unreadable": [], "sizes": [[0, 30, 6, 0]], "shared": []}',
        '{"unreadable": [], "sizes": [[Infinity, 30, 6, 0]], "shared": []}',
    ],
)  # fmt: skip
def test_what_others_wrote_into_the_cache_is_not_believed(files: list[Path], cache: Path, content: str) -> None:
    first = look(files)
    (place,) = cache.iterdir()
    assert json.loads(place.read_text())
    place.write_text(content)
    again = look(files)
    assert not again.remembered
    assert again == first
    assert look(files).remembered


def test_a_cache_that_cannot_be_written_is_done_without(files: list[Path], cache: Path) -> None:
    cache.parent.parent.write_text("a file where a folder would be")
    assert not look(files).remembered
    assert not look(files).remembered
