"""Files are written whole or not at all, alone and in sets; what cannot be written is found out before."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import dynavit
from dynavit.files import append_text, replacing, require_folder, require_writable, write_text, write_together


@pytest.fixture
def small_files() -> Iterator[None]:
    """As on a full disk: no file grows beyond 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("content", ["x" * 2000, b"x" * 2000])
def test_a_set_is_written_whole_or_not_at_all(content: str | bytes, tmp_path: Path) -> None:
    write_together(tmp_path, {"a.json": "old", "b.csv": "old"})
    with pytest.raises(dynavit.InputError, match=r"/b\.csv could not be written"):
        write_together(tmp_path, {"a.json": "new", "b.csv": content, "c.png": b"new"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old", "b.csv": "old"}


@pytest.mark.usefixtures("small_files")
def test_one_file_likewise(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(dynavit.InputError, match=r"/a\.txt could not be written"):
        write_text(tmp_path / "a.txt", "x" * 2000)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("target", ["file.txt", "nothing.txt"])
def test_no_link_is_followed(target: str, tmp_path: Path) -> None:
    """In a folder that somebody sent, it may point to anything."""
    there, link = tmp_path / "there", tmp_path / "link.txt"
    there.mkdir()
    (there / "file.txt").write_text("old")
    link.symlink_to(there / target)
    with pytest.raises(dynavit.InputError, match=r"link\.txt could not be written: it is a link"):
        append_text(link, "new")
    require_writable(link)
    write_text(link, "caf\udce9")
    append_text(link, "\n")  # which is a file now
    assert link.read_bytes() == b"caf\\udce9\n"
    assert not link.is_symlink()
    assert [(path.name, path.read_text()) for path in there.iterdir()] == [("file.txt", "old")]


def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for refuse in (require_writable, lambda path: write_text(path, "x")):
        with pytest.raises(dynavit.InputError, match="is a named pipe, socket or device"):
            refuse(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("place", ["/proc/x.json", "{folder}", "{folder}/file/x.json", "{folder}/" + "n" * 300])
def test_places_where_nothing_can_be_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = place.format(folder=tmp_path)
    with pytest.raises(dynavit.InputError, match=r"cannot be written|is a folder"):
        require_writable(path)
    with pytest.raises(dynavit.InputError), replacing(path) as partial:
        partial.write_text("x")
    with pytest.raises(dynavit.InputError, match=r"cannot be written|is a file"):
        require_folder(path if path != str(tmp_path) else tmp_path / "file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_trying_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text("old")
    require_writable(tmp_path / "kept.json")
    require_writable(tmp_path / "new" / "deep" / "x.json")
    require_folder(tmp_path / "other" / "folder")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
