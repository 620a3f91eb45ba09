"""Selectors by name: lists, errors that help, saving, and selectors that other packages bring."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import Tensor

import dynavit
from dynavit import InputError, Selection, Selector, create_selector, list_selectors, register_selector
from dynavit.selectors import Fixed, Random, SelectionRequest, TopK, registry


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    list_selectors()
    monkeypatch.setattr(registry._SELECTORS, "classes", dict(registry._SELECTORS.classes))
    yield
    registry._load_entry_points.cache_clear()


class Mine(Selector):
    """Keeps the first tokens.

    More text that the list leaves out.
    """

    trains_scorer = False

    def __init__(self, reverse: bool = False, label: str | None = None) -> None:
        super().__init__()
        self.reverse, self.label = reverse, label

    def sample(self, logits: Tensor, request: SelectionRequest) -> Selection:
        return self.decide(logits, request.alive, request.count)


def test_list_names_and_describes() -> None:
    found = list_selectors()
    assert list(found) == sorted(found)
    assert {"fixed", "gumbel_sigmoid", "random", "ste", "topk"} <= set(found)
    for line in found.values():
        assert line.endswith(".")
        assert "\n" not in line


def test_register_and_create() -> None:
    assert register_selector("mine")(Mine) is Mine
    assert list_selectors()["mine"] == "Keeps the first tokens."
    selector = create_selector("mine", reverse=True)
    assert isinstance(selector, Mine)
    assert selector.reverse
    model = dynavit.create_model("test_vit", num_classes=3, stages=(1, 2), selector={"name": "mine", "label": "a"})
    assert model.selector.label == "a"


def test_duplicate_name() -> None:
    with pytest.raises(InputError, match=r"'topk' is already registered by dynavit.selectors.topk.*override"):
        register_selector("topk")(Mine)
    assert isinstance(create_selector("topk"), TopK)
    register_selector("topk")(TopK)  # the same again is no conflict
    register_selector("topk", override=True)(Mine)
    assert isinstance(create_selector("topk"), Mine)


def test_only_selectors_can_be_registered() -> None:
    for thing in (torch.nn.Linear, Mine(), lambda: None):
        with pytest.raises(InputError, match=r"not a subclass of dynavit\.Selector"):
            register_selector("thing")(thing)
    assert "thing" not in list_selectors()


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown selector 'gumbel_sigmod'\. Did you mean 'gumbel_sigmoid'"):
        create_selector("gumbel_sigmod")
    with pytest.raises(InputError, match=r"Known: .*fixed, gumbel_sigmoid, .*topk"):
        create_selector("zzz")


def test_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'random' has no option 'seeds'\. Did you mean 'seed'"):
        create_selector("random", seeds=1)
    with pytest.raises(InputError, match=r"'topk' has no option 'seed'.*Its options: gradient"):
        create_selector("topk", seed=1)
    with pytest.raises(InputError, match=r"'gumbel_topk' has no option 'seed'.*Its options: none"):
        create_selector("gumbel_topk", seed=1)


def test_config_round_trip() -> None:
    register_selector("mine")(Mine)
    for selector in (create_selector("random", seed=7), create_selector("topk"), Mine(True, "label")):
        config = registry.selector_config(selector)
        again = create_selector(**config)
        assert type(again) is type(selector)
        assert registry.selector_config(again) == config
    assert registry.selector_config(Random(7)) == {"name": "random", "seed": 7}
    assert registry.selector_config(Mine()) == {"name": "mine", "reverse": False, "label": None}


def test_config_refuses_what_could_not_be_rebuilt() -> None:
    with pytest.raises(InputError, match=r"Mine is not a registered selector.*register_selector"):
        registry.selector_config(Mine())
    with pytest.raises(InputError, match="'decisions' of selector 'fixed' cannot be saved"):
        registry.selector_config(Fixed([torch.ones(1, 4)]))

    class Forgetful(Mine):
        """Does not keep its option."""

        def __init__(self, width: int = 3) -> None:
            super().__init__()

    register_selector("forgetful")(Forgetful)
    with pytest.raises(InputError, match=r"'width'.*self\.width"):
        registry.selector_config(Forgetful())


PLUGIN = '''
from dynavit.selectors import TopK

class Demo(TopK):
    """A selector of another package."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength

class NoSelector:
    pass
'''


@pytest.mark.slow
def test_selector_of_an_installed_package(tmp_path: Path) -> None:
    """A package made and installed as its author would, seen by a new Python process."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "demo_plugin.py").write_text(PLUGIN)
    (source / "setup.py").write_text(
        dedent("""
        from setuptools import setup
        setup(
            name="dynavit-demo", version="1.0", py_modules=["demo_plugin"],
            entry_points={"dynavit.selectors": [
                "demo = demo_plugin:Demo", "broken = demo_plugin:Missing", "topk = demo_plugin:Demo",
            ]},
        )
        """)
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(site), str(source)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    code = dedent("""
        import dynavit
        print(dynavit.list_selectors()["demo"])
        selector = dynavit.create_selector("demo", strength=2.0)
        print(type(selector).__module__, selector.strength, type(dynavit.create_selector("topk")).__name__)
        print("broken" in dynavit.list_selectors())
        """)
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{Path(dynavit.__file__).parents[1]}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = ["A selector of another package.", "demo_plugin 2.0 TopK", "False"]
    assert done.stdout.splitlines() == expected
    # what did not work is said, with its owner, and has broken nothing
    for name in ("broken", "topk"):
        assert re.search(rf"UserWarning: selector '{name}' of dynavit-demo was not loaded", done.stderr)


def test_broken_plugins_warn_and_break_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_that_fails.py").write_text("raise RuntimeError('needs a newer torch')")
    (tmp_path / "plugin_without_selector.py").write_text(PLUGIN)
    info = tmp_path / "dynavit_bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dynavit-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dynavit.selectors]\nfails = plugin_that_fails:X\nnone = plugin_without_selector:NoSelector\n"
        "good = plugin_without_selector:Demo\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry._load_entry_points.cache_clear()
    with pytest.warns(UserWarning, match="was not loaded") as caught:
        found = list_selectors()
    messages = "\n".join(str(warning.message) for warning in caught)
    assert "selector 'fails' of dynavit-bad was not loaded: needs a newer torch" in messages
    assert "selector 'none' of dynavit-bad was not loaded" in messages
    assert found["good"] == "A selector of another package."
    assert "topk" in found
    assert not {"fails", "none"} & set(found)
