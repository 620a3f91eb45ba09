"""The state of a run: read as plain data, whatever somebody put into its files."""

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dynavit.config import Config
from dynavit.errors import InputError
from dynavit.runs.open import open_run
from dynavit.training.checkpoint import PARTIAL, Progress, begin_state, find_state, is_state
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


class Evil:
    """Its pickle makes a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"echo executed > {self.trace}",)


def poison(path: Path, trace: Path) -> None:
    if path.suffix == ".bin":  # as torch.save writes it
        torch.save({"state": Evil(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(trace)))


def refuse(config: Config) -> str:
    with pytest.raises(InputError) as caught:
        Trainer(config, resume=True).fit()
    assert "\n" not in str(caught.value)
    return str(caught.value)


PLANTED = ("custom_checkpoint_0.pkl", "pytorch_model.bin")


def test_nothing_in_a_state_is_executed(tiny: Make, tmp_path: Path) -> None:
    trace = tmp_path / "EXECUTED"
    poison(tmp_path / "control.pkl", trace)
    pickle.loads((tmp_path / "control.pkl").read_bytes())
    assert trace.exists()  # so the pickle would do it
    trace.unlink()

    config = tiny("train.ema_decay=0.9")
    Trainer(config).fit()
    run = config.run_dir
    config = tiny("train.ema_decay=0.9", "train.epochs=3")
    files = sorted(path.name for path in (run / "state").iterdir() if path.name != ".dynavit")
    assert {"training.json", "ema.safetensors", "optimizer.bin", "random_states_0.pkl"} < set(files)
    shutil.copytree(run / "state", tmp_path / "whole")
    for name in (*files, *PLANTED):
        shutil.rmtree(run / "state")
        shutil.copytree(tmp_path / "whole", run / "state")
        if name == "pytorch_model.bin":  # which is read where there is no other
            (run / "state" / "model.safetensors").unlink()
        poison(run / "state" / name, trace)
        said = refuse(config)
        assert f"{run / 'state'} is damaged" in said, name
        assert "resume from state.previous" in said
        assert "weights_only" not in said
        assert not trace.exists(), name
    shutil.rmtree(run / "state")
    for path in (run / "state.previous").iterdir():
        poison(path, trace)
    assert "state.previous is damaged" in refuse(config)
    assert not trace.exists()


def test_nor_anything_beside_it(tiny: Make, tmp_path: Path) -> None:
    trace = tmp_path / "EXECUTED"
    config = tiny("train.epochs=1")
    Trainer(config).fit()
    run = config.run_dir
    shutil.copytree(run, tmp_path / "whole")
    for name in ("config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "best/model.safetensors"):
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "whole", run)
        poison(run / name, trace)
        folder = (run / name).parent
        for use in (lambda: Trainer(tiny("train.epochs=1"), True).fit(), lambda folder=folder: open_run(folder)):
            with suppress(InputError):  # not every use reads every file
                use()
        assert not trace.exists(), name
    for key in ("model.checkpoint", "loss.teacher"):
        poison(tmp_path / "evil.pth", trace)
        with pytest.raises(InputError):
            Trainer(tiny(f"{key}={tmp_path / 'evil.pth'}", "loss.logit_distillation_weight=1", folder="other"))
        assert not trace.exists(), key


def test_states_of_earlier_versions_are_named(tiny: Make) -> None:
    config = tiny("train.epochs=1")
    Trainer(config).fit()
    state = config.run_dir / "state"
    (state / "training.json").rename(state / "custom_checkpoint_0.pkl")
    assert "earlier version" in refuse(tiny("train.epochs=2"))


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "null",
        '{"progress": 3, "guard": {}}',
        '{"progress": {"epoch": "x"}, "guard": {}}',
        "\\xff",
        "NaN",
    ],
)
def test_other_numbers_are_damage(tiny: Make, content: str) -> None:
    config = tiny("train.epochs=1", "model.stages=[]")
    Trainer(config).fit()
    (config.run_dir / "state" / "training.json").write_text(content)
    assert "is damaged" in refuse(tiny("train.epochs=2", "model.stages=[]"))


def test_progress_is_plain_data_and_keeps_infinities() -> None:
    before, after = Progress(step=3, sums={"loss": 0.1 + 0.2}), Progress()
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after == before
    assert after.best == -math.inf


def test_the_previous_state_stands_in_between_two_renames(tmp_path: Path) -> None:
    assert find_state(tmp_path) is None
    (tmp_path / "state.previous").mkdir()
    assert find_state(tmp_path) == tmp_path / "state.previous"
    (tmp_path / "state").mkdir()
    assert find_state(tmp_path) == tmp_path / "state"


def test_a_removal_that_was_killed_leaves_what_is_known_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is removed first."""
    begin_state(tmp_path)
    partial = tmp_path / PARTIAL
    for name in ("about.json", "zz", "a"):
        (partial / name).touch()
    (partial / "folder").mkdir()
    right = Path.unlink
    for allowed in range(3):
        rest = iter(range(allowed))

        def unlink(path: Path, rest: Iterator[int] = rest) -> None:
            if next(rest, None) is None:
                raise KeyboardInterrupt
            right(path)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Path, "unlink", unlink)
            begin_state(tmp_path)
        assert is_state(partial)
    begin_state(tmp_path)
    assert len(list(partial.iterdir())) == 1


@pytest.mark.parametrize("damage", ["pipe", "nested", "negative", "huge", "nan"])
def test_impossible_states_are_refused_without_waiting(damage: str, tiny: Make) -> None:
    config = tiny("train.epochs=1")
    Trainer(config).fit()
    about, parts = (config.run_dir / "state" / name for name in ("about.json", "training.json"))
    if damage == "pipe":
        about.unlink()
        os.mkfifo(about)
    elif damage == "nested":
        about.write_text("[" * 100_000)
    else:
        content = json.loads(parts.read_text())
        content["progress"] |= {
            "negative": {"epoch": -1},
            "huge": {"step": 10**400},
            "nan": {"sums": {"loss": float("nan")}},
        }[damage]
        parts.write_text(json.dumps(content))
    with pytest.raises(InputError, match="state is damaged"):
        Trainer(tiny("train.epochs=2"), resume=True).fit()
