"""One training at a time in a run's folder."""

from __future__ import annotations

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from dynavit.errors import InputError

LOCK = ".lock"


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder, made if missing; the system lets go of it when the process ends, however it does.

    Warns:
        UserWarning: the file system knows no locks.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # opened without emptying it: it says who holds the lock
        file = os.fdopen(os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    except OSError as error:
        raise InputError(
            f"{run_dir} is not writable ({error.strerror}): choose another place with output_dir=FOLDER."
        ) from None
    with file:
        try:
            # not flock, which data workers would inherit and hold on to after the death of their parent
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise _held(run_dir, file) from None
        except OSError as error:
            warnings.warn(
                f"{run_dir}: the file system knows no locks ({error.strerror}), so see to it that no other process "
                f"trains there.",
                stacklevel=3,
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
            file.flush()
        yield


def refuse_if_held(run_dir: Path) -> None:
    """Find out before the work whether another process trains in a folder. Not for the one that holds it.

    Raises:
        InputError: naming that process.
    """
    with suppress(OSError), (run_dir / LOCK).open() as file:  # what else is wrong with the folder, others tell
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise _held(run_dir, file) from None
        except OSError:  # no locks here; locked() tells of that
            return


def _held(run_dir: Path, file: TextIO) -> InputError:
    holder = file.readline(200).strip()
    return InputError(
        f"{run_dir} is being trained by another process{f' ({holder})' if holder else ''}: wait for it, or choose "
        f"another place with output_dir=FOLDER."
    )
