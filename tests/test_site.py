"""The site has every page of documentation in its navigation and every public module in its reference."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import walk_packages

import griffe
import pytest

import dynavit

ROOT = Path(__file__).parents[1]
ROLES = runpy.run_path(str(ROOT / "docs/site/roles.py"))


def test_the_navigation_holds_every_page() -> None:
    shown = re.findall(r"(?m)^ +- [^:]+: ([\w./-]+)\.md$", (ROOT / "mkdocs.yml").read_text())
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("notebooks/*.ipynb")]
    assert len(pages) > 12
    assert {str(page.relative_to(ROOT).with_name(page.name.removesuffix(".md"))) for page in pages} <= set(shown)


@pytest.mark.slow
def test_the_reference_holds_every_public_module_and_name() -> None:
    pages = runpy.run_path(str(ROOT / "docs/site/reference.py"))["reference_pages"]()
    shown = {path for text in pages.values() for path in re.findall(r"(?m)^::: (\S+)$", text)}
    modules = {module.name for module in walk_packages(dynavit.__path__, "dynavit.") if "._" not in module.name}
    assert len(modules) > 100
    assert shown == modules | {f"dynavit.{name}" for name in dynavit.__all__}


def rewritten(tmp_path: Path) -> griffe.Module:
    """A package whose docstrings are written as ours are, as the site reads them."""
    (tmp_path / "dusk").mkdir()
    (tmp_path / "dusk/__init__.py").write_text('"""See :func:`~dusk.owls.hoot`, :class:`Owl`, :meth:`Owl.fly`."""\n')
    (tmp_path / "dusk/owls.py").write_text(
        '"""Birds::\n\n    hu\n\nAll.\n"""\n\n\ndef hoot(a: int, b: int) -> None:\n    """Cry.\n\n    Args:\n'
        '        a, b: how\n            often.\n\n    Example:\n        >>> 1\n        1\n    """\n\n\n'
        'class Owl:\n    """:meth:`fly` or :func:`walk`."""\n\n    def fly(self) -> None:\n        """Fly."""\n'
    )
    extensions = griffe.load_extensions(ROLES["Roles"]())
    return griffe.load("dusk", search_paths=[tmp_path], extensions=extensions)


def test_docstrings_are_read_as_they_are_meant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    package = rewritten(tmp_path)
    assert package.docstring.value == (
        "See [`hoot`][dusk.owls.hoot], [`Owl`][dusk.owls.Owl], [`Owl.fly`][dusk.owls.Owl.fly]."
    )
    owls = package["owls"]
    assert owls.docstring.value == "Birds:\n\n    hu\n\nAll."
    cry = owls["hoot"].docstring.parse("google")
    assert [(one.name, one.description) for one in cry[1].value] == [("a", "how\noften."), ("b", "how\noften.")]
    assert cry[2].kind == griffe.DocstringSectionKind.examples
    assert owls["Owl"].docstring.value.startswith("[`fly`][dusk.owls.Owl.fly]")
    assert "dusk.owls.Owl: :func:`walk` leads nowhere" in caplog.text


@pytest.mark.slow
def test_what_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)

    wrong = ["no_page.md", "methods.md#no-heading", "../configs/no_file.yaml", "../no_picture.png"]
    with (tmp_path / "docs/speed.md").open("a") as page:
        page.write(f'[a]({wrong[0]}) [b]({wrong[1]}) [c]({wrong[2]})\n\n<img src="{wrong[3]}">\n')
    with (tmp_path / "dynavit/numbers.py").open("a") as module:
        module.write(
            '\n\ndef odd(a: int) -> None:\n    """See :func:`no_function`.\n\n'
            '    Args:\n        no_argument: b\n    """\n'
        )
    command = [sys.executable, "-m", "mkdocs", "build"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert not [name for name in (*wrong, "no_function", "no_argument") if name not in done.stderr]
    # and nothing else was; `make check` builds the site as it is
    warned = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert not [line for line in warned if "docs/speed.md" not in line and "dynavit" not in line], warned
    assert len(warned) < 12
    assert (tmp_path / "build/site/index.html").exists()
    pages = [page.read_text() for page in tmp_path.glob("build/site/reference/*.html") if "numbers" not in page.name]
    assert len(pages) > 20
    assert not re.findall(r":(?:attr|class|data|func|meth|mod):", "".join(pages))
