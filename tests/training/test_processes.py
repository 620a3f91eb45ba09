"""Two processes (gloo, on the CPU) compute what one does with the joint batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dynavit.config import Config, save_config
from dynavit.evaluation.sweep import evaluate_run
from dynavit.runs.loading import make_loader
from dynavit.runs.open import open_run
from dynavit.tasks import create_task
from dynavit.training.trainer import Trainer

SCRIPT = Path(__file__).with_name("two_processes.py")
pytestmark = pytest.mark.slow


def launch(processes: int, config: Config, tmp_path: Path, *variables: str) -> dict[str, Any]:
    path = tmp_path / f"{config.run_dir.name}.yaml"
    save_config(config, path)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    result = path.with_suffix(".json")
    subprocess.run(
        [*command, str(SCRIPT), str(path), str(result)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(variable.split("=") for variable in variables)},
        check=True,
        timeout=300,
    )
    return json.loads(result.read_text())


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("selector", ["topk", "quiet"])
def test_gradients_and_accuracy_equal_one_process_with_the_joint_batch(
    tiny: Callable[..., Config], tmp_path: Path, selector: str, accumulation: int
) -> None:
    common = ["train.epochs=1", "train.clip_grad_norm=null", "optimizer.name=sgd", "data.workers=1"]
    configs = []
    for folder, batch_size in (("one", 8), ("two", 4 // accumulation)):
        config = tiny(*common, f"data.batch_size={batch_size}", folder=folder)
        config.model.selector = {"name": selector}
        configs.append(config)
    configs[1].train.accumulation_steps = accumulation
    one, two = (launch(n, config, tmp_path) for n, config in enumerate(configs, start=1))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(
            torch.tensor(two["gradients"][name]), torch.tensor(expected), rtol=1e-3, atol=1e-6, msg=name
        )
    if selector == "quiet":  # the budget loss alone reaches the last bias through nothing but probabilities
        assert torch.tensor(one["gradients"]["scorers.1.score.4.bias"]).abs().max() > 1e-4
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=1e-4)


def test_two_processes_resume_to_the_same_result(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Interrupted inside the second epoch, where batches are skipped and another permutation applies."""
    ends = []
    for folder, die_at in (("whole", None), ("broken", 5)):
        config = tiny("train.epochs=3", "data.batch_size=4", "train.checkpoint_steps=1", folder=folder)
        if die_at:
            with pytest.raises(subprocess.CalledProcessError):
                launch(2, config, tmp_path, f"DIE_AT={die_at}")
        result = launch(2, config, tmp_path, "RESUME=1")
        assert result["processes"] == 2
        ends.append((config.run_dir / "metrics.jsonl").read_text())
        ends.append({name: v.tolist() for name, v in load_file(config.run_dir / "model.safetensors").items()})
    assert ends[0] == ends[2]
    assert ends[1] == ends[3]


def test_augmentation_changes_with_the_epoch_on_every_process(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Losses of equal epochs would mean that data sets on several processes are stuck in one epoch."""
    config = tiny("optimizer.lr=1e-12", "train.epochs=2", "data.augmentation={scale: [0.1, 1.0]}", "data.batch_size=4")
    assert launch(2, config, tmp_path)["processes"] == 2
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train/loss"] != pytest.approx(rows[1]["train/loss"], abs=1e-5)


@pytest.mark.parametrize("across", [True, False])
def test_triplets_across_processes_are_those_of_the_joint_batch(
    reid: Callable[..., Config], tmp_path: Path, across: bool
) -> None:
    """Four identities with two images each, together or two on each process; without batch norm's identity loss.

    Negative control: triplets within each process are other triplets, though not with the weights of seed 0.
    """
    common = ["train.epochs=1", "train.clip_grad_norm=null", "optimizer.name=sgd", "loss.identity_weight=0", "seed=1"]
    common += [f"loss.metric_across_processes={across}", "loss.metric={name: triplet, margin: 5.0}"]
    configs = [reid(*common, f"data.batch_size={size}", folder=name) for size, name in ((8, "one"), (4, "two"))]
    order = "ORDER=0,1,4,5,8,9,12,13"
    one, two = (launch(n, config, tmp_path, order) for n, config in enumerate(configs, start=1))
    assert (one["processes"], two["processes"]) == (1, 2)
    largest = max(max(map(abs, values)) for values in one["gradients"].values())
    worst = max(
        float((torch.tensor(two["gradients"][name]) - torch.tensor(values)).abs().max())
        for name, values in one["gradients"].items()
        if name.startswith(("backbone", "scorers"))
    )
    assert (worst < 1e-4 * largest) == across


def test_retrieval_counts_every_image_once(reid: Callable[..., Config], tmp_path: Path) -> None:
    """The saved model, searched by one process, gives what two processes reported."""
    config = reid("train.epochs=2", "data.batch_size=4", folder="two")
    two = launch(2, config, tmp_path)
    assert two["processes"] == 2
    run = open_run(config.run_dir)
    task = create_task(config)
    data = task.open_data(run.preprocessing, train=False)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(make_loader(data.validation, 5, 0))
    ((alone, *_),) = task.evaluate([run.model], loader, accelerator, data)
    for name in ("map", "minp", "rank1"):
        assert two["accuracy"][f"val/{name}"] == pytest.approx(alone[name], abs=1e-6)


def test_the_main_process_alone_times_prints_and_writes(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Two processes find the accuracy of one, and rows with speed are written once."""
    config = tiny("train.epochs=2")
    Trainer(config).fit()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dynavit"]
    arguments = ["evaluate", str(config.run_dir), "--output", str(tmp_path / "two"), "--adaptive"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shown = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("Written to") == shown.stdout.count("keep ratio  ") == 1, shown.stdout
    rows = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert all(row["throughput"]["2"]["images_per_second"] > 0 for row in rows)
    alone = evaluate_run(open_run(config.run_dir), batch_sizes=[], output=tmp_path / "one", adaptive=True)
    assert [row.get("top1") for row in rows] == [row.get("top1") for row in alone]
