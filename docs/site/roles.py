"""Docstrings as they are written here, as mkdocstrings reads them.

Sphinx's roles, as ``:func:`load```, become cross-references; what is said of several arguments at once, as
``a, b: ...``, is said of each; ``Example:`` becomes a section, and ``::`` before a block a colon.
"""

import re
from collections.abc import Iterator
from functools import partial

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)\.?([\w.]+)`")
SHARED = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+)(: .*(?:\n\1 .*)*)", flags=re.MULTILINE)
logger = griffe.get_logger("roles")


def full_path(name: str, scope: griffe.Object, paths: list[str]) -> str | None:
    """Return the path of what a name means: in the object and around it, else the only one so called in the package."""
    for start in (scope, scope.module, scope.module.parent or scope.module):
        try:
            name = start.resolve(name)
            break
        except griffe.NameResolutionError:
            continue
    try:
        return scope.package[name.removeprefix(f"{scope.package.name}.")].canonical_path
    except (griffe.AliasResolutionError, KeyError):
        found = [path for path in paths if path.endswith(f".{name}")]
        return found[0] if len(found) == 1 else None


def objects(scope: griffe.Object) -> Iterator[griffe.Object]:
    """Yield an object and all that it contains."""
    yield scope
    for member in scope.members.values():
        if not member.is_alias:
            yield from objects(member)


class Roles(griffe.Extension):
    """Rewrites every docstring of a package, once all of it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        paths = [each.path for each in objects(pkg)]
        for scope in objects(pkg):
            if scope.docstring:
                text = ROLE.sub(partial(self.reference, scope=scope, paths=paths), scope.docstring.value)
                text = SHARED.sub(lambda m: "\n".join(m[1] + name + m[3] for name in m[2].split(", ")), text)
                text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
                scope.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)

    def reference(self, match: re.Match[str], scope: griffe.Object, paths: list[str]) -> str:
        """Return Markdown for a role."""
        short, name = match.groups()
        path = full_path(name, scope, paths)
        if path is None:
            logger.warning(f"{scope.path}: {match.group()} leads nowhere")
        return f"[`{name.rpartition('.')[2] if short else name}`][{path}]"
