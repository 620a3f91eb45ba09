"""The tools as users call them: output, exit status, one clear line on bad input."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynavit.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model, saved as a training run would."""
    import dynavit

    model = dynavit.create_model(
        "vit_tiny_patch16_224",
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=3,
        stages=(1, 2), keep_ratio=0.5,
    )  # fmt: skip
    model.metadata = {"class_names": ["red", "green", "blue"]}
    folder = tmp_path_factory.mktemp("run")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tool", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_tools_run_from_anywhere_and_explain_themselves(tool: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"usage: {tool}.py" in shown or f"usage: dynavit {tool}" in shown


def test_predict_writes_labels_and_reports_what_it_could_not_read(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("labels.csv", "labels.json"):
        assert main(["predict", str(run), "--images", str(images), "--output", str(tmp_path / name)]) == 0
        assert "broken.png cannot be read" in capsys.readouterr().err
    rows = json.loads((tmp_path / "labels.json").read_text())
    assert len(rows) == 10
    assert {row["label"] for row in rows} <= {"red", "green", "blue"}
    assert all(1 / 3 <= row["probability"] <= 1 for row in rows)
    with (tmp_path / "labels.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == [row["label"] for row in rows]


def test_predict_does_not_depend_on_the_batch(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for size in ("1", "7"):
        assert main(["predict", str(run), "--images", str(images), "--batch-size", size]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_visualize_draws_pages(run: Path, images: Path, tmp_path: Path) -> None:
    arguments = ["visualize", str(run), "--images", str(images), "--output", str(tmp_path)]
    assert main([*arguments, "--keep-ratio", "0.7"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2
    first = np.asarray(Image.open(tmp_path / "kept_tokens_001.png"))
    assert main([*arguments, "--keep-ratio", "0.2"]) == 0
    assert not np.array_equal(first, np.asarray(Image.open(tmp_path / "kept_tokens_001.png")))


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("selectors", {"topk", "gumbel_sigmoid", "ste", "random", "fixed"}),
        (
            "scorers",
            {"mlp", "light", "linear", "anchored", "class_attention", "distinctness", "key_norm", "random"},
        ),
        ("reducers", {"drop", "fuse", "merge", "merge_nearest", "squeeze", "aggregate"}),
    ],
)
def test_what_there_is_is_listed(what: str, names: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= names
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "nowhere"], "nowhere does not exist"),
        (["evaluate", "{images}"], "config.json does not exist"),
        (["evaluate", "{run}"], "has no config.yaml"),
        (["predict", "{run}", "--images", "nowhere"], "nowhere does not exist"),
        (["predict", "{run}", "--images", "{images}", "--device", "foo"], "--device foo"),
        (["predict", "{run}", "--images", "{images}", "--device", "meta"], "--device meta"),
        (["predict", "{run}", "--images", "{run}"], "holds no images"),
        (["compare", "{run}", "--output", "losses.foo"], "losses.foo: the name of a picture ends in .png"),
        (["compare", "{run}", "--output", "{images}"], "the name of a picture ends in .png"),
        (["compare", "nowhere"], "nowhere is no run"),
        (["compare", "{run}", "nowhere"], "is no run: give the folder of a training"),
        (["predict", "{run}", "--images", "{images}", "--output", "labels.txt"], "must end in .csv or .json"),
        (["visualize", "{run}", "--images", "{images}", "--keep-ratio", "1.5"], "keep_ratio=1.5"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml is no file"),
        (["train", "--config", "{yaml}", "model.architecture=resnet18"], "ResNet cannot be pruned"),
        (["train", "--config", "{yaml}", "model.architecture=vit_tny"], "timm has no model 'vit_tny'"),
        (["train", "--config", "{yaml}", "data.root=nowhere"], "nowhere"),
        (["train", "--config", "{yaml}", "model.stages=[4,2]"], "stages=[4, 2]"),
        (["train", "--config", "{yaml}", "model.checkpoint=nowhere.pth"], "nowhere.pth does not exist"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line_and_status_2(
    arguments: list[str],
    said: str,
    run: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text(f"model: {{architecture: test_vit}}\noutput_dir: {tmp_path / 'out'}\n")
    filled = [part.format(run=run, images=images, yaml=yaml) for part in arguments]
    assert main(filled) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert shown.startswith("error: ")
    assert "\n" not in shown
    assert not (tmp_path / "out").exists()


@pytest.fixture
def folder_run(tmp_path: Path) -> list[str]:
    """Arguments of a training that works: a folder of two classes, a second of computing."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    yaml = tmp_path / "run.yaml"
    yaml.write_text(
        "model: {architecture: vit_tiny_patch16_224, stages: [1],\n"
        "        kwargs: {img_size: 32, patch_size: 8, embed_dim: 24, depth: 3, num_heads: 3}}\n"
        f"data: {{root: {tmp_path / 'images'}, batch_size: 4, workers: 0, crop_pct: 1.0}}\n"
        f"train: {{epochs: 1}}\noutput_dir: {tmp_path / 'out'}\n"
    )
    return ["train", "--config", str(yaml)]


def spoil(folder: Path, how: str) -> None:
    if how == "class without images":
        (folder / "train" / "bird").mkdir()
        (folder / "val" / "bird").mkdir()
    elif how == "no validation":
        (folder / "val").rename(folder / "pets")
    elif how == "class missing in validation":
        (folder / "val" / "dog").rename(folder / "val" / "wolf")
    elif how == "one class":
        shutil.rmtree(folder / "train" / "dog")
        shutil.rmtree(folder / "val" / "dog")
    elif how == "corrupt image":
        (folder / "train" / "dog" / "0.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("how", "overrides", "said"),
    [
        ("class without images", [], "bird"),
        ("no validation", [], "val"),
        ("class missing in validation", [], "wolf"),
        ("corrupt image", [], "dog/0.png cannot be read"),
        ("corrupt image", ["data.workers=1"], "dog/0.png cannot be read"),
        ("", ["model.kwargs.img_size=30"], "img_size=(30, 30) is no multiple of the patch size (8, 8)"),
        ("", ["model.kwargs.img_size=[64]"], "img_size=[64]"),
        ("", ["model.kwargs.img_size=x"], "img_size='x'"),
        ("", ["model.kwargs.num_heads=0"], "num_heads=0: a whole number, at least 1"),
        ("", ["seed=99999999999999999999999"], "seed=99999999999999999999999"),
        ("", ["optimizer.options={betas: [0.9]}"], "optimizer.name=adamw, optimizer.options={'betas': [0.9]}"),
        ("", ["data.augmentation={scale: [0.1, x]}"], "augmentation.scale"),
        ("", ["model.kwargs.num_heads=5"], "timm cannot create vit_tiny_patch16_224 with"),
        ("", ["model.kwargs.colour=red"], "colour"),
        ("", ["model.stages=[3]"], "from 0 to 2"),
        ("", ["model.keep_ratios=[0.5,0.4]"], "2 ratios for 1 stages"),
        ("", ["model.selector.name=topp"], "Did you mean 'topk'"),
        ("", ["model.selector={name: topk, tau: 1}"], "has no option 'tau'"),
        ("", ["model.selector.tau=1"], "for example model.selector.name=topk"),
        ("", ["model.reducer.name=melt"], "unknown reducer 'melt'"),
        ("", ["optimizer.name=adamww"], "optimizer.name='adamww': timm has no such optimiser. Did you mean 'adamw'?"),
        ("", ["data.name=torchvision/CIFAR11"], "Did you mean 'CIFAR10'"),
        ("", ["data.augmentation={hflipp: 1}"], "Did you mean 'hflip'"),
        ("", ["train.accumulation_steps=64"], "train.accumulation_steps=64"),
        ("", ["loss.token_distillation_weight=1"], "loss.teacher=start"),
        ("", ["loss.logit_distillation_weight=1", "loss.teacher=nowhere"], "nowhere"),
        ("", ["output_dir=/dev/null/run"], "/dev/null"),
        ("", ["model.selector.name=random", "train.freeze=backbone"], "nothing is left to learn"),
        ("", ["data.corrupt=ignore"], "data.corrupt='ignore'"),
        ("one class", [], "one class only"),
        ("", ["seed=-1"], "seed=-1"),
        ("", ["train.ema_decay=2"], "train.ema_decay=2"),
        ("", ["loss.label_smoothing=2"], "loss.label_smoothing=2"),
        ("", ["data.std=[0,0,0]"], "data.std=[0.0, 0.0, 0.0]"),
        ("", ["data.mean=[0.5]"], "data.mean=[0.5]: the model has 3 input channel(s)"),
        ("", ["data.std=[0.5, 0.5]"], "data.std=[0.5, 0.5]: 1, 3 or 4 numbers"),
        ("", ["data.mixup=0.8", "data.batch_size=3"], "even number"),
        ("", ["model.kwargs.in_chans=2"], "in_chans=2: pictures are read with 1 channel"),
        ("", ["model.kwargs.in_chans=4", "data.augmentation={auto_augment: 3a}"], "augmentation.auto_augment='3a'"),
        ("", ["model.kwargs.patch_drop_rate=0.5"], "patch_drop_rate"),
        ("", ["model.kwargs.global_pool=max"], "global_pool='max'"),
        ("", ["model.reducer={name: drop, x: 1}"], "no option 'x'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_trainings_that_cannot_work_say_so(
    how: str, overrides: list[str], said: str, folder_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path / "images", how)
    assert main([*folder_run, *overrides]) == 2
    shown = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line and line.strip()]
    assert len(shown) == 1, shown
    assert shown[0].startswith("error: ")
    assert said in shown[0]


def test_a_truncated_model_is_recognised(run: Path, images: Path, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in run.glob("*.json"):
        (broken / path.name).write_text(path.read_text())
    (broken / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:5000])
    assert main(["predict", str(broken), "--images", str(images)]) == 2
    assert "truncated" in capsys.readouterr().err


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from dynavit.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_full_disk_loses_nothing(folder_run: list[str], tmp_path: Path) -> None:
    assert main(folder_run) == 0
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.name in ("model.safetensors", "config.json")}
    assert before
    # no file may grow beyond 20 kB: the model does not fit
    command = [sys.executable, "-c", LIMITED, "20000", *folder_run, "--resume", "train.epochs=3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "could not be written" in lines[0]
    assert "Traceback" not in done.stderr
    assert all(path.read_bytes() == content for path, content in before.items())
    assert main([*folder_run, "--resume", "train.epochs=3"]) == 0
