"""Two trainings in one folder: the second is told who is there."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing import Process, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dynavit.config import Config
from dynavit.errors import InputError
from dynavit.runs.open import open_run
from dynavit.training.lock import locked
from dynavit.training.trainer import Trainer


def hold(folder: Path, held: Connection) -> None:
    with locked(folder):
        held.send(True)
        time.sleep(600)


@pytest.fixture
def holding() -> Iterator[Callable[[Path], Process]]:
    """Function: a folder to a process that holds it until it is killed."""
    context, started = get_context("fork"), []

    def start(folder: Path) -> Process:
        here, there = context.Pipe()
        process = context.Process(target=hold, args=(folder, there))
        process.start()
        started.append(process)
        assert here.poll(60)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_the_second_process_is_refused_and_a_killed_one_lets_go(
    tiny: Callable[..., Config], holding: Callable[[Path], Process]
) -> None:
    config = tiny("train.epochs=1")
    holder = holding(config.run_dir)
    for resume in (False, True):
        with pytest.raises(InputError, match=rf"trained by another process \(process {holder.pid} on") as caught:
            Trainer(config, resume)
        assert socket.gethostname() in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="trained by another"), locked(config.run_dir):  # also where both just began
        pass
    assert {path.name for path in config.run_dir.iterdir()} == {".lock"}
    holder.kill()
    holder.join()
    Trainer(config).fit()
    holding(config.run_dir)
    assert open_run(config.run_dir).config is not None  # looking at it is allowed


def test_file_systems_without_locks_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="knows no locks"), locked(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"not writable.*output_dir"), locked(tmp_path / "run"):
        pass


def test_nor_one_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"not writable.*output_dir"), locked(tmp_path / "file" / "run"):
        pass
