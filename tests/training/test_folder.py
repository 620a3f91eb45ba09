"""What may be trained where, and what may change when a run is resumed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dynavit.cli import main
from dynavit.config import Config, save_config
from dynavit.errors import InputError
from dynavit.training.monitor import MetricsFile
from dynavit.training.trainer import Trainer

Make = Callable[..., Config]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "foreign",
    ["thesis.txt", "state.partial/thesis.txt", "state/thesis.txt", "metrics.jsonl", "config.yaml", ".hidden"],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_files_is_refused_untouched(tiny: Make, foreign: str, resume: bool) -> None:
    config = tiny()
    path = config.run_dir / foreign
    path.parent.mkdir(parents=True)
    path.write_text("model: {architecture: test_vit}")  # as a configuration that dynavit did not write
    before = contents(config.run_dir)
    with pytest.raises(InputError, match=str(config.run_dir)):
        Trainer(config, resume)
    assert contents(config.run_dir) == before


def test_foreign_folders_inside_a_run_are_left_alone(tiny: Make) -> None:
    Trainer(tiny("train.epochs=1")).fit()
    run = tiny().run_dir
    (run / "state.partial").mkdir()
    (run / "state.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"state.partial was not written by dynavit"):
        Trainer(tiny("train.epochs=2"), resume=True).fit()
    assert (run / "state.partial" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["best", "state", "state.previous", "state.partial"])
def test_folders_that_are_links_are_refused_untouched(tiny: Make, tmp_path: Path, name: str) -> None:
    config = tiny()
    config.run_dir.mkdir()
    save_config(config, config.run_dir / "config.yaml")
    (tmp_path / "there").mkdir()
    (config.run_dir / name).symlink_to(tmp_path / "there")
    with pytest.raises(InputError, match=f"{name} is a link to somewhere else"):
        Trainer(config, resume=True)
    assert not list((tmp_path / "there").iterdir())


def test_a_file_is_no_folder(tiny: Make) -> None:
    tiny().run_dir.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        Trainer(tiny())


def test_what_an_earlier_start_left_does_not_stop_the_next(tiny: Make) -> None:
    config = tiny("train.epochs=1")
    config.run_dir.mkdir()
    (config.run_dir / ".lock").touch()
    Trainer(config).fit()
    assert len(MetricsFile(config.run_dir / "metrics.jsonl").rows()) == 1


def test_a_removed_state_is_noticed(tiny: Make) -> None:
    Trainer(tiny("train.epochs=1")).fit()
    run = tiny().run_dir
    shutil.rmtree(run / "state")
    before = contents(run)
    with pytest.raises(InputError, match=r"holds a model but no state.*state/ was removed.*model.checkpoint="):
        Trainer(tiny("train.epochs=1"), resume=True)
    (run / "model.safetensors").unlink()  # nor is what its metrics tell forgotten
    with pytest.raises(InputError, match="state/ was removed"):
        Trainer(tiny("train.epochs=1"), resume=True)
    assert contents(run).items() <= before.items()


def test_a_kill_at_the_end_of_the_first_epoch_can_be_resumed(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny("train.epochs=1"))

    def die() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_state", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert (tiny().run_dir / "model.safetensors").exists()
    Trainer(tiny("train.epochs=1"), resume=True).fit()
    assert (tiny().run_dir / "state").is_dir()


def test_what_may_change_is_said(
    tiny: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(tiny("train.epochs=2")).fit()
    shutil.copytree(pictures, tmp_path / "moved")
    (tmp_path / "moved" / "train" / "red" / "0.png").unlink()
    changed = [f"data.root={tmp_path / 'moved'}", "data.corrupt=skip", "train.log_steps=7", "evaluate.rounds=3"]
    capsys.readouterr()
    Trainer(tiny("train.epochs=4", *changed), resume=True).fit()
    said = capsys.readouterr().out
    assert f"data.root '{pictures}' -> '{tmp_path / 'moved'}', data.corrupt 'stop' -> 'skip'" in said
    assert "after 4 epochs in place of 2" in said
    assert "the learning rate is 0.00029 (it was 0)" in said
    assert "The training images are 23; they were 24." in said


@pytest.mark.parametrize(
    "change", ["data.batch_size=4", "optimizer.lr=1", "model.selector=ste", "seed=1", "data.mixup=0.5"]
)
def test_what_would_change_the_result_may_not(tiny: Make, change: str) -> None:
    config = tiny()
    config.run_dir.mkdir()
    save_config(config, config.run_dir / "config.yaml")
    (config.run_dir / "state").mkdir()
    with pytest.raises(InputError, match=f"another configuration: {change.partition('=')[0]}="):
        Trainer(tiny(change), resume=True)


def test_a_finished_run_says_so_and_is_left_alone(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tiny("train.epochs=2")
    save_config(config, tmp_path / "again.yaml")
    Trainer(config).fit()
    before = contents(config.run_dir)
    before.pop(".lock")
    capsys.readouterr()
    assert main(["train", "--config", str(tmp_path / "again.yaml"), "--resume"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert said[-1:] == [
        f"{config.run_dir} is finished: its 2 epochs are done. To train longer, give more epochs with train.epochs=N "
        "--resume."
    ]
    assert {name: data for name, data in contents(config.run_dir).items() if name != ".lock"} == before
    with pytest.raises(InputError, match=r"train.epochs=1: .* has trained for 2 epochs; give 2 or more"):
        Trainer(tiny("train.epochs=1"), resume=True).fit()


def test_a_run_that_diverges_at_once_says_what_it_has_not_saved(
    tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny("loss.keep_ratio_weight=1e300", "model.selector=ste", "train.epochs=1")
    save_config(config, tmp_path / "high.yaml")
    assert main(["train", "--config", str(tmp_path / "high.yaml")]) == 2
    said = capsys.readouterr().err
    assert "Nothing was saved" in said
    assert "the learning rate is not the cause" in said
    assert "good checkpoint" not in said


def test_a_damaged_configuration_is_named(tiny: Make) -> None:
    config = tiny("train.epochs=1")
    Trainer(config).fit()
    for content in ("modell: 3", "model: [", json.dumps({"seed": "x"})):
        (config.run_dir / "config.yaml").write_text(content)
        with pytest.raises(InputError, match=r"config.yaml"):
            Trainer(tiny("train.epochs=2"), resume=True)
    (config.run_dir / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"lacks its config.yaml"):
        Trainer(tiny("train.epochs=2"), resume=True)
