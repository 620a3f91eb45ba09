"""The pages for developers are true: what they name exists, where they say it is."""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from dynavit.config import Config
from dynavit.config.schema import settings

ROOT = Path(__file__).parents[1]
PAGES = ("docs/architecture.md", "docs/training.md", "CONTRIBUTING.md")
OUTSIDE = (".ci/", "configs/", "docs/", "tests/", "tools/")
SETTINGS = {entry.key for entry in settings(Config())}
SECTIONS = {key.partition(".")[0] for key in SETTINGS if "." in key}
TARGETS = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))

each_page = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", (ROOT / page).read_text())


def quoted(page: str) -> list[str]:
    """All that is between backticks, without blocks of code."""
    text = re.sub(r"(?ms)^```.*?^```", "", (ROOT / page).read_text())
    return re.findall(r"`([^`]+)`", text)


@cache
def words() -> set[str]:
    """All words of the code, of its tests and of the settings of its tools."""
    files = [*(path for folder in ("dynavit", "tests", "tools") for path in (ROOT / folder).rglob("*.py"))]
    files += [ROOT / name for name in ("pyproject.toml", "setup.py", "Makefile")]
    return {word for path in files if path != Path(__file__) for word in re.findall(r"\w+", path.read_text())}


@cache
def defined(path: Path) -> set[str]:
    """Names that a file defines, and those of its classes behind a dot."""
    found = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    visit(ast.parse(path.read_text()).body, "")
    return found


def problem(text: str) -> str | None:
    """Say what is wrong with a text between backticks: paths, names in a file, settings, or words of the code."""
    return next((wrong for part in text.split() if (wrong := wrong_part(part))), None)


def wrong_part(text: str) -> str | None:
    if text.startswith("dynavit."):
        module, _, attribute = text.rpartition(".")
        return None if hasattr(import_module(module), attribute) else "no such attribute"
    if text.partition(".")[0] in SECTIONS and re.match(r"\w+\.\w", text):
        key = text.partition("=")[0]
        return None if key in SETTINGS or key.removesuffix(".NAME") in SETTINGS else "no such setting"
    name, _, inside = text.partition(":")
    if "/" in name or name.endswith((".py", ".md")):
        name = name.rpartition("/")[0] if "NAME" in name else name  # the reader's own, in a folder that there is
        folders = [ROOT] if name.startswith(OUTSIDE) else [ROOT / "dynavit", ROOT]
        path = next((folder / name for folder in folders if (folder / name).exists()), None)
        if path is None:
            return "no such file"
        return None if not inside or inside in defined(path) else "not defined there"
    unknown = set(re.findall(r"[A-Za-z_]\w+", text)) - words() - {"NAME", "VALUE"}
    return f"not in the code: {', '.join(sorted(unknown))}" if unknown else None


@each_page
def test_what_a_page_names_exists(page: str) -> None:
    found = quoted(page)
    assert len(found) > 15
    assert not {text: wrong for text in found if (wrong := problem(text)) is not None}


@pytest.mark.parametrize(
    "text",
    [
        "models/masks.py", "models/attention_bias.py:attention_masks", "models/pruned_vit.py:Tokens.block",
        "docs/mask.py", "tests/models/test_invariants.py:test_nothing", "loss.keep_ratios", "model.scorers.NAME=VALUE",
        "dynavit.create_models", "selecters/NAME.py", "Selecter", "tests/model/test_NAME.py", "pytest tests/selecters",
    ],
)  # fmt: skip
def test_what_does_not_exist_is_noticed(text: str) -> None:
    assert problem(text) is not None


@each_page
def test_links_lead_to_files_and_the_readme_leads_here(page: str) -> None:
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text())
    assert not [target for target in targets if not (folder / target).exists()]
    assert f"]({page})" in (ROOT / "README.md").read_text()


def test_commands_are_targets_of_make() -> None:
    lines = "".join(blocks("CONTRIBUTING.md", "bash")).splitlines()
    commands = [line.partition("  #")[0].split() for line in lines]
    assert len(commands) > 4
    assert {first for first, *_ in commands} == {"make"}
    assert {target for _, *targets in commands for target in targets} <= TARGETS


def test_layers_are_those_of_the_contract() -> None:
    (contract,) = re.findall(r"(?ms)^layers = (\[.*?^\])", (ROOT / "pyproject.toml").read_text())
    (drawn,) = blocks("docs/architecture.md", "text")
    shown = [re.split(r"\s{2,}", line)[0] for line in drawn.splitlines()]
    assert shown == [layer.replace("dynavit.", "") for layer in ast.literal_eval(contract)]
