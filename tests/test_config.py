from collections.abc import Callable
from pathlib import Path

import pytest

from dynavit.config import Config, load_config, save_config
from dynavit.errors import InputError

ROOT = Path(__file__).parents[1]
ACCELERATE = sorted(ROOT.glob("configs/accelerate/*.yaml"))
CONFIGS = sorted(set(ROOT.glob("configs/**/*.yaml")) - set(ACCELERATE))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Config]:
    def make(text: str = "", *overrides: str) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text("model: {architecture: vit_tiny_patch16_224}\n" + text)
        return load_config(path, overrides)

    return make


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_say_how_to_run_them(path: Path) -> None:
    load_config(path)
    text = path.read_text()
    assert f"--config {path.relative_to(ROOT)}" in text or "tools/train.py --images" in text


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    several = config.num_processes > 1
    assert str(config.distributed_type).endswith("MULTI_GPU" if several else "NO")
    assert config.num_processes % config.num_machines == 0
    assert path.name in (path.parent / "README.md").read_text()


def test_later_sources_win(load: Callable[..., Config]) -> None:
    config = load("optimizer: {lr: 2.0e-3, name: sgd}", "optimizer.lr=1e-4", "model.selector.name=ste")
    assert (config.optimizer.lr, config.optimizer.name) == (1e-4, "sgd")
    assert config.model.selector == {"name": "ste"}
    assert config.train.epochs == Config().train.epochs


def test_yaml_traps(load: Callable[..., Config]) -> None:
    """YAML 1.1 reads `1e-3` as text and `no` as false."""
    config = load("optimizer: {lr: 1e-3}\ntrain: {mixed_precision: no}")
    assert config.optimizer.lr == 0.001
    assert config.train.mixed_precision == "no"


def test_what_is_saved_loads_as_the_same(load: Callable[..., Config], tmp_path: Path) -> None:
    config = load("data: {augmentation: {hflip: 0.5, scale: [0.5, 1.0]}, options: {a: 1}}", "model.stages=[1,2]")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optimizer.lrr=1"], r"unknown key 'optimizer.lrr'.*Did you mean 'lr'.*Keys in optimizer: name, lr"),
        (["lr=1"], r"unknown key 'lr'.*Did you mean 'optimizer.lr'"),
        (["modell.stages=[1]"], r"unknown key 'modell'.*Did you mean 'model'"),
        (["train.epochs=many"], r"train.epochs.*many.*Expected int"),
        (["train.epochs=0"], r"train.epochs=0.*above 0"),
        (["data.workers=-1"], r"data.workers=-1.*negative"),
        (["model.keep_ratio=0"], r"keep ratio 0.*\(0, 1\]"),
        (["model.keep_ratios=[0.5,1.5]"], r"keep ratio 1.5"),
        (["evaluate.keep_ratios=[2.0]"], r"keep ratio 2"),
        (["model.stages=3"], r"model.stages.*Expected list\[int\]"),
        (["model.selector=topk"], r"model.selector.*Expected dict"),
        (["model.selector.name=3"], r"model.selector.*needs a name"),
        (["train=3"], r"train.*Expected"),
        (["task=clasify"], r"task='clasify'.*Did you mean 'classify'"),
        (["train.mixed_precision=bf61"], r"train.mixed_precision='bf61'.*Did you mean 'bf16'"),
        (["model.architecture=null"], r"model.architecture is missing"),
        (["epochs"], r"'epochs': overrides are written key.subkey=value"),
        (["seed=null"], r"seed.*None.*Expected int"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_values_are_named_with_their_fix(load: Callable[..., Config], overrides: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load("", *overrides)
    assert "\n" not in str(caught.value)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml is no file and no shipped configuration"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("model: {architecture: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="holds no settings"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match=r"model.architecture is missing"):
        load_config(tmp_path / "empty.yaml")
