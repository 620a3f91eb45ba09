import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dynavit.config import Config, ModelConfig, load_config, save_config
from dynavit.config.checks import check
from dynavit.config.limits import check_value
from dynavit.config.schema import Setting, settings
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
        (["loss.keep_ratio=1"], r"unknown key 'loss.keep_ratio'.*Did you mean 'keep_ratio_weight'"),
        (["lr=1"], r"unknown key 'lr'.*Did you mean 'optimizer.lr'"),
        (["modell.stages=[1]"], r"unknown key 'modell'.*Did you mean 'model'"),
        (["train.epochs=many"], r"train.epochs.*many.*Expected int"),
        (["train.epochs=0"], r"train.epochs=0.*above 0"),
        (["data.workers=-1"], r"data.workers=-1: lies in \[0, 1024\]"),
        (["data.interpolation=bicubik"], r"data.interpolation='bicubik': choose one of nearest, .*mean 'bicubic'"),
        (["model.keep_ratio=0"], r"model.keep_ratio=0.0: lies in \(0, 1\]"),
        (["model.keep_ratios=[0.5,1.5]"], r"model.keep_ratios=\[0.5, 1.5\]: 1.5"),
        (["evaluate.keep_ratios=[2.0]"], r"evaluate.keep_ratios=\[2.0\]"),
        (["model.stages=3"], r"model.stages.*Expected list\[int\]"),
        (["model.selector=3"], r"model.selector=3: Expected dict"),
        (["model.selector=[topk]"], r"model.selector=\['topk'\]: Expected dict"),
        (["model.stages[0]=3"], r"model.stages=.*Expected list\[int\]"),
        (["model.stages=[[1]]"], r"model.stages=\[\[1\]\]: Expected list\[int\]"),
        (["model.stages=[true]"], r"model.stages\[0\].*'True'.*Expected list\[int\]"),
        (["model=null"], r"model=None: Expected a section"),
        (["data=[]"], r"data=\[\]: Expected a section"),
        (["optimizer.lr=a: b"], r"optimizer.lr=.*Expected float; put text that holds ': ' in quotes"),
        (["data.augmentation={a: [}"], r"data.augmentation=.*no YAML.*quotes"),
        (["data.root=${"], r"data.root=\$\{.*key.subkey=value"),
        (["data.root=${oc.env:NO_SUCH_VARIABLE}"], r"data.root=.*NO_SUCH_VARIABLE.*not found"),
        (["data.root=${data.root}"], r"data.root=.*Recursive"),
        (["a..b=1"], r"'a..b=1': overrides are written"),
        (["=1"], r"'=1': overrides are written"),
        (["seed=99999999999999999999999"], r"seed=99999999999999999999999: lies in"),
        (["seed=true"], r"seed=True.*Expected int"),
        (["optimizer.layer_decay=-1"], r"optimizer.layer_decay=-1.0: lies in \(0, 1\]"),
        (["optimizer.layer_decay=2"], r"optimizer.layer_decay=2.0"),
        (["evaluate.batch_sizes=[0]"], r"evaluate.batch_sizes=\[0\]"),
        (["data.std=[1,0,1]"], r"data.std=\[1.0, 0.0, 1.0\]: 0.0"),
        (["model.placement=besides"], r"model.placement='besides'"),
        (["name=/"], r"name='/'.*output_dir"),
        (["name=.."], r"name='..'"),
        (["name=a/b"], r"name='a/b'"),
        (["name='  '"], r"name='  '"),
        (["name=" + 300 * "x"], r"name='xxx"),
        (["name="], r"name='': is empty; give a value"),
        (["output_dir="], r"output_dir='': is empty; give a value"),
        (["data.root=' '"], r"data.root=' ': is empty"),
        (["name=???"], r"name='\?\?\?': .*missing; give one"),
        (["train.epochs=???"], r"train.epochs='\?\?\?': .*missing; give one"),
        (["data.options={a: [x, '???']}"], r"data.options.a='\?\?\?': .*missing; give one"),
        (["data.root=a\0b"], r"data.root='a\\x00b'.*NUL"),
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


@pytest.mark.parametrize(
    ("text", "override", "source"),
    [
        ("", "seed=true", "the command line"),
        ("", "optimizer.lrr=1", "the command line"),
        ("", "train={epochs: many}", "the command line"),
        ("", "model.stages=[1, x]", "the command line"),
        ("data: {root: /x}", "data.root=${nothing}", "the command line"),
        ("seed: true", "name=x", "{file}"),
        ("train: {epochs: many}", "train.log_steps=1", "{file}"),
        ("optimizer: {lrr: 1}", "optimizer.lr=1", "{file}"),
        ("name: '???'", "seed=1", "{file}"),
    ],
)
def test_the_source_of_a_bad_value_is_named(
    load: Callable[..., Config], tmp_path: Path, text: str, override: str, source: str
) -> None:
    with pytest.raises(InputError, match=f"^{source.format(file=tmp_path / 'run.yaml')}: "):
        load(text, override)


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


NUMBERS = [entry for entry in settings(Config()) if "int" in entry.type or "float" in entry.type]


def test_every_number_says_what_it_may_be() -> None:
    assert len(NUMBERS) > 40
    assert [entry.key for entry in NUMBERS if entry.within is None] == []
    for entry in settings(Config()):  # and its default is such a number
        check_value(entry.key, entry.value, entry.within, entry.choices)


@pytest.mark.parametrize("entry", NUMBERS, ids=lambda entry: entry.key)
def test_no_number_is_infinite(entry: Setting) -> None:
    for number in (math.nan, math.inf, -math.inf):
        config = Config(model=ModelConfig(architecture="test_vit"))
        section, _, name = entry.key.rpartition(".")
        node = getattr(config, section) if section else config
        setattr(node, name, [number] if entry.type.startswith("list") else number)
        with pytest.raises(InputError, match=rf"^{re.escape(entry.key)}=.*{number}"):
            check(config)


@pytest.mark.parametrize(
    "override",
    [
        "model.kwargs.mlp_ratio=.nan",
        "model.kwargs.drop_path_rate=inf",
        "model.kwargs={a: [1, -Infinity]}",
        "data.options.fraction=NaN",
        "model.kwargs={deep: {deeper: [1, -.inf]}}",
        "model.selector.tau=.inf",
        "data.augmentation={hflip: .nan}",
        "data.options.fraction=.nan",
        "optimizer.options={betas: [0.9, .nan]}",
    ],
)
def test_nor_one_inside_free_options(load: Callable[..., Config], override: str) -> None:
    with pytest.raises(InputError, match=r"^[a-z._]+=.*must be a finite number"):
        load("", override)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.root=/photos/a: b", "/photos/a: b"),
        ("data.root=/photos #1", "/photos #1"),
        ("data.root=[x]", "[x]"),
        ("data.root=2024_01_01", "2024_01_01"),
        ("data.root=007", "007"),
        ("data.root='quoted: text'", "quoted: text"),
        ("data.root=a=b", "a=b"),
        ("data.root=null", None),
        ("data.root=nan", "nan"),
    ],
)
def test_text_on_the_command_line_is_taken_as_it_stands(load: Callable[..., Config], override: str, text: str) -> None:
    assert load("", override).data.root == text


def test_parts_may_be_given_by_their_name(load: Callable[..., Config], tmp_path: Path) -> None:
    assert load("", "model.selector=ste").model.selector == {"name": "ste"}
    assert load("", "model.selector=ste", "model.selector.tau=2").model.selector == {"name": "ste", "tau": 2}
    path = tmp_path / "short.yaml"
    path.write_text("model: {architecture: test_vit, scorer: linear, selector: {name: topk, tau: 2}}")
    assert load_config(path).model.scorer == {"name": "linear"}
    # the options of the one in the file are not those of another
    assert load_config(path, ["model.selector=ste"]).model.selector == {"name": "ste"}
    assert load_config(path, ["model.selector.name=ste"]).model.selector == {"name": "ste", "tau": 2}


def test_environment_variables_and_other_settings_stand_in(
    load: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOTOS", "/photos")
    config = load("data: {root: '${oc.env:PHOTOS}/train'}", "name=${data.name}")
    assert (config.data.root, config.name) == ("/photos/train", "folder")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(9 * ['*' + old])}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: {architecture: x}\nmodel: {architecture: y}", "duplicate key model"),
        (b"data:\n  root: a: b", r"mapping values.*': ' in quotes"),
        (b"model:\n\tarchitecture: x", "line 2"),
        (b"name: caf\xe9", "UTF-8"),
        (b"\0\1", "not valid YAML"),
        (b"3", "holds no settings"),
        (b"model: 3", "model=3: Expected a section"),
        (b"data: {mean: {a: 1}}", r"data.mean=.*Expected list"),
        (b"data: {root: {a: 1}}", r"data.root=.*quotes"),
        (b"1: 2", "unknown key '1'"),
        (b"optimizer: {lr.x.y: 2}", "unknown key 'optimizer.lr.x.y'"),
        (b"x.y: 2", "unknown key 'x.y'"),
        (b"model: {selector: '${x}'}", "'x' not found"),
        (b"model: '${x}'", "'x' not found"),
        (b"null: 2", "NoneType"),
        (b"name: !!python/object/apply:os.getpid []", "not valid YAML"),
        (b"data: {options: {d: !!set {a, b}}}", "set"),
        (BOMB.encode(), "limit"),
        (b"a: &a [*a]", "recursive"),
        (b"[" * 3000, "not valid YAML"),
        (b"# x\n" * 600_000, "MB"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_what_only_training_needs_does_not_stop_the_rest(load: Callable[..., Config]) -> None:
    assert load("data: {mixup: 0.8, cutmix: 1.0}", "data.batch_size=1").data.batch_size == 1


def test_folders_and_devices_are_no_configuration(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="is no file"):
            load_config(path)


@pytest.mark.parametrize(
    ("override", "key"),
    [("data.root=caf\udce9", "data.root"), ("output_dir=\ud800", "output_dir"), ('data.options={x: ["\\xE9"]}', "")],
)
def test_what_yaml_cannot_hold_is_named(override: str, key: str, load: Callable[..., Config], tmp_path: Path) -> None:
    config = load("", override)
    if not key:  # text in a list
        config.data.options["x"], key = ["caf\udce9"], "data.options"
    with pytest.raises(InputError, match=rf"^{key}=.*only UTF-8"):
        save_config(config, tmp_path / "config.yaml")
    assert not (tmp_path / "config.yaml").exists()


def test_settings_of_version_0_1_are_read_by_their_new_names(tmp_path: Path) -> None:
    save_config(Config(model=ModelConfig(architecture="vit_tiny_patch16_224")), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    for name, value in {
        "keep_ratio_weight: 2.0": "keep_ratio: 3.0",
        "keep_ratio_measure: .*": "budget: decisions",
    }.items():
        text, count = re.subn(name, value, text)
        assert count == 1
    (tmp_path / "config.yaml").write_text(text)
    config = load_config(tmp_path / "config.yaml")
    assert (config.loss.keep_ratio_weight, config.loss.keep_ratio_measure) == (3.0, "decisions")
    assert load_config(tmp_path / "config.yaml", ["loss.keep_ratio_weight=4"]).loss.keep_ratio_weight == 4


@pytest.mark.parametrize("text", ["{keep_ratio: 0.5}", "{budget: '???'}", "'${oc.env:NOPE}'", "{identity: '${nope}'}"])
def test_they_are_unknown_in_a_file_that_somebody_wrote(text: str, load: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match="loss"):
        load(f"loss: {text}\n")
