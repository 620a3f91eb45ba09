"""The API reference: what ``import dynavit`` gives, and a page for each package, of all its modules."""

from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = griffe.load("dynavit", search_paths=[Path(__file__).parents[2]])
EXTENDED = {f"dynavit.{name}" for name in ("adapters", "losses", "reducers", "scorers", "selectors")}


def reference_pages() -> dict[str, str]:
    """Return Markdown for mkdocstrings by the name of the page."""
    modules = {name: module for name, module in sorted(PACKAGE.modules.items()) if not name.startswith("_")}
    public: dict[str, list[str]] = {}
    for name in PACKAGE.exports:
        public.setdefault(PACKAGE[name].target_path.split(".")[1], []).append(name)
    text = "# dynavit\n\nWhat `import dynavit` gives. The other pages hold what it is made of.\n\n"
    for package, names in sorted(public.items(), key=lambda item: len(item[1]), reverse=True):
        summary = modules[package].docstring.value.splitlines()[0]
        text += f"## {summary.partition('. ')[0].rstrip('.')}\n\n"
        text += "".join(f"::: dynavit.{name}\n    options: {{heading_level: 3}}\n\n" for name in names)
    pages = {"dynavit": text}
    for module in modules.values():
        members = {name: member for name, member in module.members.items() if not name.startswith("_")}
        own = [name for name, member in members.items() if not (member.is_alias or member.is_module)]
        text = f"::: {module.path}\n    options: {{members: {own}, heading_level: 1}}\n\n"
        for inner in sorted(module.modules, key=lambda inner: (inner != "base", inner)):
            text += f"::: {module.path}.{inner}\n\n"
        pages[module.path] = text
    return pages


def on_config(config: MkDocsConfig) -> None:
    """Put the API reference into the navigation, where it is empty."""
    (entry,) = (entry for entry in config.nav if "API reference" in entry)
    first, *others = ({name: f"reference/{name}.md"} for name in reference_pages())
    extended = [page for page in others if set(page) & EXTENDED]
    inside = [page for page in others if page not in extended]
    entry["API reference"] = [first, {"What can be extended": extended}, {"Everything else": inside}]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages."""
    for name, text in reference_pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
