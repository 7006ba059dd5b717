"""What `mkdocs build` does beyond mkdocs.yml: pages that lie outside docs/, their links, and what is made from code or folders."""

import json
import logging
from pathlib import Path
import posixpath
import re

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

from gptoss_jax.model.aliases import TRANSFORMER_LENS, names_of
from gptoss_jax.model.sites import SITES

ROOT = Path(__file__).resolve().parent.parent
BROUGHT = {
    "readme.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "results.md": "benchmarks/RESULTS.md",
    "workshop.md": "checkpoints/README.md",
}
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
MATHJAX = re.compile(r"<script data-mkdocs-jupyter-mathjax=.*?</script>\s*", re.S)

logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert's, of figures without a description


def on_config(config):
    """Patterns in the navigation become the files that there are."""
    config.nav = [{title: _found(entry) for title, entry in section.items()} for section in config.nav]


@event_priority(100)  # before the plugins look at the files
def on_files(files, config):
    for uri, path in BROUGHT.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown, page, config, files):
    markdown = markdown.replace("```python\n>>>", "```pycon\n>>>")
    markdown = markdown.replace("<!-- table of sites -->", sites_table())
    markdown = markdown.replace("<!-- table of aliases -->", aliases_table())
    markdown = markdown.replace("<!-- list of notebooks -->", _notebooks(page, files))
    return _relinked(markdown, page, files)


def on_post_page(output, page, config):
    return MATHJAX.sub("", output)  # no notebook has formulas, and MathJax would come from a CDN


def sites_table() -> str:
    """The table of every site of the model, as Markdown."""
    rows = ["| site | shape | what it is | |", "|---|---|---|---|"]
    for name, site in SITES.items():
        notes = ["on request"] * site.on_request + ["not patched"] * site.fixed
        rows.append(f"| `{name}` | `{site.shape}` | {site.meaning} | {', '.join(notes)} |")
    return "\n".join(rows)


def aliases_table() -> str:
    """The table of TransformerLens' names, as Markdown."""
    rows = ["| in TransformerLens | here |", "|---|---|"]
    for site in dict.fromkeys(TRANSFORMER_LENS.values()):
        rows.append(f"| {', '.join(f'`{name}`' for name in names_of(site))} | `{site}` |")
    return "\n".join(rows)


def title(notebook: Path) -> str:
    """Its first heading."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    heading = re.search(r"^# (.*)$", text, re.M)
    return heading[1] if heading else notebook.stem


def _found(entry):
    if not isinstance(entry, str) or "*" not in entry:
        return entry
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(entry))


def _notebooks(page, files) -> str:
    """A list of the notebooks by their titles."""
    found = sorted((file.src_uri, Path(file.abs_src_path)) for file in files if file.src_uri.endswith(".ipynb"))
    return "\n".join(f"- [{title(path)}]({_from(page, uri)})" for uri, path in found)


def _from(page, uri: str) -> str:
    return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")


def _relinked(markdown: str, page, files) -> str:
    """Links as they stand in the repository, led to the pages that the files have here. What has no page loses its link.

    A link to nothing stays as it is, and mkdocs complains.
    """
    pages = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}
    folder = Path(page.file.abs_src_path).resolve().parent

    def link(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if ":" in target:
            return match[0]
        path = (folder / target).resolve()
        inside = [uri for one, uri in pages.items() if path in one.parents] if path.is_dir() else []
        if path in pages or inside:
            uri = pages.get(path) or min(inside, key=lambda uri: (posixpath.basename(uri) != "index.md", uri))
            return f"[{text}]({_from(page, uri)}{anchor})"
        return text if path.exists() else match[0]

    return LINK.sub(link, markdown)
