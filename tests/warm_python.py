"""Programs in processes that find the large libraries imported, which is most of what a short command takes."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "torchvision.transforms.v2", "timm", "accelerate", "matplotlib.pyplot"])


def run_python(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run what ``python WORDS`` would: a file, or ``-c`` and a program; of this package nothing is imported before.

    Args:
        words: what stands behind ``python``.
        folder: where it runs.
        environment: all variables that it has.
        seconds: that it may take.

    Returns:
        As of :func:`subprocess.run`, with both streams in ``stdout``.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    with TemporaryDirectory() as place:
        output = Path(place) / "output"
        process = _SERVER.Process(target=_program, args=(list(words), str(folder), dict(environment), str(output)))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, seconds, output.read_text())
        assert process.exitcode is not None
        return subprocess.CompletedProcess(words, process.exitcode, output.read_text(), stderr="")


def _program(words: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        return
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")
