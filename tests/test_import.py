import re
import subprocess
import sys
from pathlib import Path

import dynavit

HEAVY = ("accelerate", "matplotlib", "sklearn", "omegaconf", "tensorboard", "onnxruntime")


def test_importing_dynavit_costs_little_beyond_torch_and_timm() -> None:
    code = (
        "import sys, torch, timm; before = set(sys.modules); import dynavit; "
        f"print([name for name in {HEAVY!r} if name in set(sys.modules) - before])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_listing_selectors_needs_no_engine() -> None:
    code = "import sys; from dynavit.cli import main; main(['selectors']); print('accelerate' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "False"


def test_no_module_imports_a_private_name_of_another() -> None:
    statement = re.compile(r"^\s*from dynavit[\w.]* import (\([^)]*\)|.*)", re.MULTILINE)
    for path in Path(dynavit.__file__).parent.rglob("*.py"):
        for names in statement.findall(path.read_text()):
            assert not re.findall(r"\b_(?!_)\w+", names), path
