"""What has to be installed for inference, and what is said where more is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest

NEEDED = ("torch", "timm", "safetensors", "huggingface_hub")

SCRIPT = """
import sys
for name in {others!r}:
    sys.modules[name] = None  # as if it were not installed

import tempfile, timm, torch, dynavit
from dynavit.cli import main

model = dynavit.create_model("test_vit", stages=(2, 4), keep_ratio=0.5, num_classes=10).eval()
images = torch.randn(2, 3, 160, 160)
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    model.save_pretrained(folder)
    assert torch.equal(dynavit.load(folder)(images), model(images))
dynavit.calibrate(model, [images])
dynavit.convert(timm.create_model("test_vit", num_classes=10).state_dict(), "test_vit")
assert {{"accelerate", "omegaconf"}} <= {others!r}
for arguments in (["train", "--config", "nothing.yaml"], ["benchmark"]):
    assert main(arguments) == 2
"""


def needed_packages() -> set[str]:
    """Return the distributions that NEEDED need, with those that they need in turn."""
    found: set[str] = set()
    waiting = list(NEEDED)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            asked = requires(name) or []
        except PackageNotFoundError:  # of another platform
            continue
        waiting += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in asked if "extra ==" not in line]
    return found


@pytest.mark.slow
def test_inference_needs_four_packages() -> None:
    """A process that finds no other package creates, runs, saves, loads, calibrates and converts a model."""
    needed = needed_packages()
    others = {
        module
        for module, owners in packages_distributions().items()
        if not any(re.sub(r"[-_.]+", "-", owner).lower() in needed for owner in owners)
    } - {"dynavit", "tests", "setuptools", "pkg_resources", "_distutils_hack"}
    others = {name for name in others if not name.startswith("__editable___dynavit_")}
    run = subprocess.run([sys.executable, "-c", SCRIPT.format(others=others)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    messages = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert messages == [
        "error: this needs the package omegaconf: pip install omegaconf",
        "error: this needs the package omegaconf: pip install omegaconf",
    ]
