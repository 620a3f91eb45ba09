"""SIGKILL at random moments, again and again: the end is that of a run left alone."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynavit.config import Config, save_config

TRAIN = Path(__file__).parents[2] / "tools" / "train.py"
KILLS = 10


@pytest.mark.slow
def test_ten_kills_change_nothing(tiny: Callable[..., Config], tmp_path: Path) -> None:
    extra = ["train.epochs=60", "train.checkpoint_steps=2", "train.ema_decay=0.9", "model.selector.name=ste"]
    runs = {}
    for name, workers in (("alone", 0), ("killed", 1)):  # which must not matter either
        config = tiny(*extra, f"data.workers={workers}", folder=name)
        runs[name] = config.run_dir
        save_config(config, tmp_path / f"{name}.yaml")

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(TRAIN), "--config", str(tmp_path / f"{name}.yaml"), "--resume"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    alone = start("alone")
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, output

    moments = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = start("killed")
        assert process.stdout is not None
        if kills % 5 == 4:  # while it starts
            time.sleep(moments.uniform(0.5, 5.0))
        else:  # while it trains
            while line := process.stdout.readline():
                if "epochs of" in line:
                    break
            time.sleep(moments.uniform(0.0, 0.6))
        assert process.poll() is None, "the run ended before it could be killed often enough"
        process.kill()
        process.communicate()
        kills += 1
    last = start("killed")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output

    assert (runs["alone"] / "metrics.jsonl").read_text() == (runs["killed"] / "metrics.jsonl").read_text()
    for file in ("model.safetensors", "best/model.safetensors"):
        expected, found = (load_file(run / file) for run in runs.values())
        assert all(torch.equal(found[name], value) for name, value in expected.items())
