"""What the site consists of: README.md with all that it leads to, and a page for each package of the library.

Files keep the places that they have in the repository, so that links in Markdown need not be changed. Source files and
folders that are linked become pages that show them, at their own name with ``.md`` behind.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PACKAGE = griffe.load("dynavit", search_paths=[ROOT])
LINK = re.compile(r'(\]\(|src=")(?!\w+:|#)([^)\s"#]+)')
EXTENDED = {f"dynavit.{name}" for name in ("adapters", "losses", "reducers", "scorers", "selectors")}
AS_IT_IS = {".md", ".json", ".png"}


def leads_to(page: Path) -> dict[str, Path]:
    """Return what a page links to, by the words of its links."""
    links = {target: (page.parent / target).resolve() for _, target in LINK.findall(page.read_text())}
    return {target: path for target, path in links.items() if path.exists()}


def linked_files() -> list[Path]:
    """Return README.md and all that can be reached from it."""
    found = [ROOT / "README.md"]
    for path in found:  # which grows
        new = path.iterdir() if path.is_dir() else leads_to(path).values() if path.suffix == ".md" else ()
        found += sorted(set(new) - set(found))
    return found


def as_page(path: Path) -> str:
    """Return Markdown that shows a folder, a notebook or the text of a file."""
    if path.suffix == ".ipynb":
        return "\n\n".join(part for cell in json.loads(path.read_text())["cells"] for part in cell_parts(cell))
    title = f"# {path.relative_to(ROOT)}\n\n"
    if path.is_dir():
        return title + "".join(f"- [{file.name}]({path.name}/{file.name}.md)\n" for file in sorted(path.iterdir()))
    return title + f"````{path.suffix[1:] or 'text'}\n{path.read_text()}````\n"


def cell_parts(cell: dict) -> Iterator[str]:
    """Yield the source of a notebook's cell and its outputs as Markdown."""
    source = "".join(cell["source"])
    yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        if "image/png" in data:
            yield f'<img alt="{data["text/plain"][0]}" src="data:image/png;base64,{data["image/png"].strip()}">'
        else:
            yield "```text\n" + "".join(output.get("text") or data["text/plain"]).rstrip() + "\n```"


def reference_pages() -> dict[str, str]:
    """Return the pages of the API reference by name: what ``import dynavit`` gives, then each package's modules."""
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
    """Add what the site consists of."""
    for path in linked_files():
        name = str(path.relative_to(ROOT))
        if path.suffix in AS_IT_IS:
            files.append(File.generated(config, name, abs_src_path=str(path)))
        else:
            files.append(File.generated(config, f"{name}.md", content=as_page(path)))
    for name, text in reference_pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to source files lead to the pages that show them."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    shown = {target for target, path in leads_to(Path(source)).items() if path.suffix not in AS_IT_IS}
    return LINK.sub(lambda match: match.group() + ".md" * (match.group(2) in shown), markdown)
