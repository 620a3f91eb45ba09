"""What came of an attempt: success, one InputError, or a fault; and what it did to files that are not its own."""

from __future__ import annotations

import hashlib
import re
import signal
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dynavit.errors import InputError
from dynavit.training.monitor import Diverged

_SECONDS = 20.0  # an attempt takes 0.2, ten times that on a busy machine; more is a hang
_SHOWN = 20


class _TookTooLong(BaseException):  # not an Exception, which code under test may catch
    pass


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to.

    Attributes:
        kind: "success"; "refused" by an InputError; "diverged", by the guard of training, which is no fault of the
            settings' form and has its own exit status; or "fault".
        message: of the error.
        value: what the attempt returned.
    """

    kind: str
    message: str = ""
    value: object = None


def attempt(action: Callable[[], object]) -> Outcome:
    """Run something and say what came of it."""
    try:
        with _time_limit():
            return Outcome("success", value=action())
    except InputError as error:
        return Outcome("refused", str(error))
    except Diverged as error:
        return Outcome("diverged", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if "/dynavit/" in frame.filename] or frames
        where = f"{Path(inside[-1].filename).name}:{inside[-1].lineno} in {inside[-1].name}"
        return Outcome("fault", f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}")


def form_faults(message: str) -> list[str]:
    """Return what is wrong with the form of an error message."""
    faults = []
    if "\n" in message or "\r" in message:
        faults.append("the message has several lines")
    if re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f\x9b]", message):
        faults.append("the message has control characters: " + repr(message[:200]))
    if len(message) >= 1000:
        faults.append("the message has 1,000 characters or more")
    if re.search(r"weights_only\W+(to\W+)?False", message):
        faults.append("the message advises to disable weights_only")
    return faults


def fingerprint(folder: Path) -> dict[str, str]:
    """Return a hash of every file below a folder, by its name; folders and links are told apart from files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = f"{path.is_dir()}{hashlib.sha1(content).hexdigest()}"
    return found


def report(faults: Sequence[tuple[str, str]]) -> str:
    """Group faults ``(what, reproduction)``: how often each occurred, and its shortest reproduction."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for what, reproduction in faults:
        # the same words are the same fault, whatever values, keys and paths they are about
        words = re.sub(r"/\S+|'.*?'|\"[^\"]*\"|\[.*?\]|\{.*?\}|[\w-]+[.=]\S+|\d+", "_", what)
        groups[words[:70]].append((what, reproduction))
    largest = sorted(groups.values(), key=len, reverse=True)
    lines = [f"{len(faults)} faults of {len(groups)} kinds"]
    for group in largest[:_SHOWN]:
        what, reproduction = min(group, key=lambda fault: len(fault[1]))
        lines.append(f"\n{len(group)} x {what}\n    {reproduction}")
    return "\n".join(lines)


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _TookTooLong(f"more than {_SECONDS:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
