"""The pages of the site: README.md and all that it leads to.

Files keep the places that they have in the repository, so that links in Markdown need not be changed. Source files and
folders that are linked become pages that show them, at their own name with ``.md`` behind.
"""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

logger = logging.getLogger("mkdocs.hooks.site")
ROOT = Path(__file__).parents[2]
LINK = re.compile(r'(\]\(|src=")(?!\w+:|#)([^)\s"#]+)')
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


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add README.md and all that it leads to."""
    for path in linked_files():
        name = str(path.relative_to(ROOT))
        if path.suffix in AS_IT_IS:
            files.append(File.generated(config, name, abs_src_path=str(path)))
        else:
            files.append(File.generated(config, f"{name}.md", content=as_page(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to source files lead to the pages that show them."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    links = leads_to(Path(source))
    for kind, target in LINK.findall(markdown):
        if kind == 'src="' and target not in links:  # in HTML, which mkdocs does not look at
            logger.warning(f"Doc file '{page.file.src_uri}' shows '{target}', which is not there.")
    shown = {target for target, path in links.items() if path.suffix not in AS_IT_IS}
    return LINK.sub(lambda match: match.group() + ".md" * (match.group(2) in shown), markdown)
