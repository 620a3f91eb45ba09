"""Files are written whole or not at all, alone and in sets; what cannot be written is found out before."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import dynavit
from dynavit.files import replacing, require_folder, require_writable, write_text, write_together


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


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "file.txt")
    require_writable(tmp_path / "link.txt")
    write_text(tmp_path / "link.txt", "caf\udce9")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there" / "file.txt").read_bytes() == rb"caf\udce9"


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
