"""README and docs are true: their Python runs, their commands run in the order given, their links lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.warm_python import run_python

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
}

# the same commands, made short: two steps of small batches, one timing round
SHORT = [
    "train.epochs=1", "train.steps_per_epoch=2", "train.mixed_precision=no", "data.batch_size=4", "data.workers=0",
    "evaluate.rounds=1",
]  # fmt: skip
SHORT_STUDIES = {"stability": "control,attempt1,fix_log", "selection": "topk,gumbel_topk,none"}
PK = ["data.batch_size=4", "data.images_per_identity=2"]
SHORT_FOR = {
    "configs/quickstart/classify": ["data.options={validation_size: 16}"],
    "configs/quickstart/learned": ["data.options={validation_size: 16}"],
    "configs/quickstart/reid": [*PK, "data.options={train_identities: 200, test_identities: 4, gallery_per_camera: 1}"],
    "configs/quickstart/multimodal": [
        *PK, "data.options={train_identities: 200, test_identities: 4, gallery_per_camera: 1}", "train.dense_epochs=1",
    ],
    "my_images": [
        "model.checkpoint=weights.pth", "model.kwargs={img_size: 64, depth: 4}", "model.stages=[1,2,3]",
        "train.dense_epochs=1",
    ],
    "configs/reid": [
        *PK, "model.pretrained=false", "model.stages=[1,2,3]",
        "model.kwargs={img_size: [64, 32], depth: 4, embed_dim: 96, num_heads: 3}",
    ],
}  # fmt: skip


def blocks(language: str) -> list[str]:
    text = "".join(PAGES.values())
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line for line in (line.partition("  #")[0].strip() for line in lines) if line]


@pytest.mark.slow
@pytest.mark.parametrize("source", blocks("python"))
def test_python_examples_run(source: str) -> None:
    strict = f"import warnings\nwarnings.simplefilter('error', UserWarning)\n{source}"
    done = run_python(["-c", strict], ROOT, os.environ, seconds=120)
    assert done.returncode == 0, f"{source}\n{done.stdout}"


def headings(path: Path) -> set[str]:
    """Names of a page's headings, as links call them."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page])
    targets += re.findall(r'src="(?!https?:)([^"]+)"', PAGES[page])
    assert targets or page != "README.md"
    for target in targets:
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not heading or heading in headings(path), target


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200
    assert not [page for page in PAGES if page != "README.md" and f"]({page}" not in PAGES["README.md"]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository, with a folder of images as the README assumes."""
    folder = tmp_path / "checkout"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if not name.startswith("tests/") and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    backbone = timm.create_model("deit_small_patch16_224", img_size=64, depth=4)
    torch.save(backbone.state_dict(), folder / "weights.pth")  # in place of those that would be downloaded
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label in ("cat", "dog"):
            (folder / "my_images" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (70, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "my_images" / split / label / f"{number}.jpg")
    for split, names in (("train", "abcd"), ("query", "xy"), ("gallery", "xyz")):
        for name in names:
            (folder / "my_animals" / split / name).mkdir(parents=True)
            for number in range(1 if split == "query" else 3):
                pixels = rng.integers(0, 255, (70, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "my_animals" / split / name / f"{split}{number}.jpg")
    return folder


def expand(line: str, folder: Path) -> list[list[str]]:
    """Turn a README line into what is run: make targets into their commands, trainings into short ones."""
    if line.startswith("make "):
        # what make would do once .venv is there, without the set-up
        (folder / ".venv").mkdir(exist_ok=True)
        (folder / ".venv" / ".ready").touch()
        # a make around these tests asks, in its own flags, for lines that are no commands
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        listed = subprocess.run(
            [*shlex.split(line), "-n"], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        lines = listed.stdout.splitlines()
    else:
        lines = [line]
    commands = []
    for shown in lines:
        words = shlex.split(shown)
        if "tools/train.py" in words:
            config = words[1 + (words.index("--config" if "--config" in words else "--images"))]
            words += SHORT + [word for prefix, more in SHORT_FOR.items() if config.startswith(prefix) for word in more]
        if "tools/study.py" in words:
            words += ["--seeds", "0", "--steps", "40", "--variants", SHORT_STUDIES[words[2]]]
        if "tools/methods.py" in words:
            words += ["--limit", "16", "--rounds", "1", "--keep-ratios", "0.7"]
        if "tools/export.py" in words:
            words = [word for word in words if word not in ("--rounds", "30")]
            words += ["--no-timing", *(["--format", "onnx,openvino", "--precision", "int8"] if "all" in words else [])]
        if "tools/evaluate.py" in words:
            shipped = any(word in words for word in ("checkpoints/quickstart-pruned", "checkpoints/quickstart-dense"))
            words += ["evaluate.rounds=1", "data.options.validation_size=64"] if shipped else ["--rivals", "none"]
        if "tools/tune.py" in words:
            words += ["--limit", "4", "--rounds", "1", "--configs", "configs/methods/default.yaml"]
        if "tools/plan.py" in words:
            words += ["--rounds", "1"]
        if "tools/benchmark.py" in words:
            words += ["--rounds", "1", "--backbone", "test_vit", "--batch-sizes", "2"]
        commands.append(["python" if word == ".venv/bin/python" else word for word in words])
    return commands


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    name, *words = command
    if name == "python" and words[0] != "-m":
        return run_python(words, folder, environment, seconds=600)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_commands_run_in_the_order_given(checkout: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran: list[list[str]] = []
    by_ci = {word for line in (ROOT / ".ci/run").read_text().splitlines() for word in line.split()}
    for line in command_lines():
        if line.startswith("make ") and by_ci.issuperset(line.split()):  # this test is part of those
            continue
        for command in expand(line, checkout):
            if command in ran:
                continue
            done = run(command, checkout, environment)
            assert done.returncode == 0, f"{line}\n{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
            ran.append(command)
    assert len(ran) > 5
    assert (checkout / "checkpoints/quickstart/report.html").exists()
