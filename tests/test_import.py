"""What importing dynavit and its commands costs; each process asks for more and more."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dynavit

HEAVY = ("accelerate", "matplotlib", "sklearn", "omegaconf", "tensorboard", "onnxruntime")

LAZY = f"""
import contextlib, io, sys
import dynavit
from dynavit.cli import main

def show(step, names):
    print(step, [name for name in names if name in sys.modules])

for arguments in (["--version"], ["--help"], ["train", "--help"], ["evaluate", "--help"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        main(arguments)
    assert said.getvalue()
    show(arguments[0], ["torch", "timm", "numpy", *{HEAVY!r}[:3]])
with contextlib.redirect_stdout(io.StringIO()):
    main(["selectors"])
show("selectors", ["timm", *{HEAVY!r}])
import timm  # which may bring some of them
heavy = [name for name in {HEAVY!r} if name not in sys.modules]
from dynavit import *
show("names", heavy)
"""


def test_help_needs_no_torch_and_the_library_little_beyond_torch_and_timm() -> None:
    run = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    steps = ("--version", "--help", "train", "evaluate", "selectors", "names")
    assert run.stdout.splitlines() == [f"{step} []" for step in steps]


def test_every_public_name_is_there() -> None:
    assert set(dynavit.__all__) <= set(dir(dynavit))
    assert all(hasattr(dynavit, name) for name in dynavit.__all__)
    assert dynavit.selectors.TopK.__name__ == "TopK"
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        dynavit.creat_model  # noqa: B018


def test_no_module_imports_a_private_name_of_another() -> None:
    statement = re.compile(r"^\s*from (?:dynavit|studies)[\w.]* import (\([^)]*\)|.*)", re.MULTILINE)
    library = Path(dynavit.__file__).parent
    for path in (*library.rglob("*.py"), *(library.parent / "studies").glob("*.py")):
        for names in statement.findall(path.read_text()):
            assert not re.findall(r"\b_(?!_)\w+", names), path
