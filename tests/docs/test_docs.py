"""The documentation builds without a warning, shows what the code says, and has no link to nothing; its examples run.

Links are checked twice: as GitHub shows the files, without building anything, and on the built site.
"""

import ast
import functools
from html.parser import HTMLParser
from importlib.util import find_spec
import inspect
import json
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys
from urllib.parse import unquote, urldefrag

from examples import run_examples
import pytest

from checkpoints.nano_evaluation import table
import gptoss_jax as gj
from gptoss_jax import adapters, harmony
from gptoss_jax.model import aliases, hooks, sites, transformer
from gptoss_jax.research import activations, display, lenses, patching, plots, sae
import pallas_kernels.attention
import pallas_kernels.moe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "checkpoints/README.md", "benchmarks/RESULTS.md")), *DOCS.rglob("*.md")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SERVED = "serving"  # its examples ask a server: tests/docs/test_serving.py
GUIDES = sorted(path for path in DOCS.glob("*.md") if ">>>" in path.read_text(encoding="utf-8") and path.stem != SERVED)
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter")
SHOWN = {
    "llm": (gj.LLM, gj.LLM.chat, gj.LLM.score),
    "requests": (gj.Sampling, gj.Task, gj.Completion, gj.Reply, gj.Outcome),
    "checkpoints": (gj.load, gj.save, gj.Model, gj.Config, gj.mesh),
    "functions": (gj.forward, transformer.extend, transformer.prefill, transformer.decode_step),
    "hooks": (gj.capture, gj.patch, gj.select, gj.substitute, hooks.add, hooks.force_experts, hooks.layers_of, sites.Site),
    "adapters": (adapters.init, adapters.attach, adapters.merge, adapters.load, adapters.save, adapters.Factors),
    "lenses": (lenses.logit_lens, lenses.expert_load, lenses.sink_mass_by_head, lenses.direct_logit_attribution, lenses.Attribution),
    "sae": (sae.SAE, sae.load, sae.save, sae.encode, sae.clamp, sae.steer),
    "patching": (patching.grid, patching.estimate, patching.Effects, patching.logit_difference),
    "activations": (activations.Folder, activations.Writer, activations.read, activations.save),
    "plots": (plots.plot_logit_lens, plots.plot_patching, plots.token_strip, plots.TokenStrip, display.treescope),
    "harmony": (harmony.parse, harmony.render, harmony.StreamParser, harmony.Parsed),
    "kernels": (pallas_kernels.attention.attention, pallas_kernels.moe.moe),
}


@pytest.mark.thorough
@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_examples(path):
    """Each guide runs by itself."""
    run_examples(path)


def test_every_example_is_run():
    """Blocks of Python are examples with what they print, but for the recipe for Ray, which tests/batch/test_ray.py runs."""
    assert {"checkpoints", "generating", "interpretability", "many_requests", "structured", "training"} <= {path.stem for path in GUIDES}
    others = {path.name for path in PAGES for block in re.findall(r"```python\n(.*?)```", text_of(path), re.S) if block[:4] != ">>> "}
    assert others == {"ray_data.md"}


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_lines_are_short(path):
    """But for rows of tables and lines of JSON."""
    assert not [line for line in text_of(path).splitlines() if len(line) > 140 and not line.startswith(("|", "{"))]


@pytest.mark.thorough
def test_the_batch_job_writes_what_is_shown(tmp_path):
    text = text_of(DOCS / "batch.md")
    words = shlex.split(re.search(r"^    (python -m gptoss_jax\.batch --input=checkpoints/examples.*)$", text, re.M)[1])
    output = tmp_path / "results.jsonl"
    arguments = [f"--output={output}" if word.startswith("--output") else word for word in words[1:]]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    shown = re.search(r"lines of `results.jsonl` are\n\n```json\n(.*?)\n```", text, re.S)[1].splitlines()
    assert len(shown) == 3 and set(shown) <= set(output.read_text().splitlines())
    assert re.search(r"results.jsonl: (9 of 9 .* out);", text)[1] in done.stderr + done.stdout


def test_stated_accuracies_are_the_evaluated_ones():
    stated = json.loads((ROOT / "checkpoints" / "nano" / "accuracies.json").read_text())
    assert table(stated["accuracies"]) in text_of(DOCS / "checkpoints.md")


def text_of(path: Path) -> str:
    """What a file says: a notebook's are its cells of text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


@functools.cache
def anchors(path: Path) -> frozenset[str]:
    """Of a page's headings, those that GitHub and mkdocs make alike."""
    if path.suffix != ".md":
        return frozenset()
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(path), flags=re.S), re.M)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "]", heading)).strip().lower() for heading in headings]
    return frozenset(slug for text in plain if plain.count(text) == 1 and (slug := text.replace(" ", "-")) == re.sub(r"[-\s]+", "-", text))


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_an_anchor(path):
    """As GitHub shows the page; names are those of the files, also in docs/, and an anchor is the same there and on the site."""
    broken = []
    for link in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"```.*?```", "", text_of(path), flags=re.S)):
        address, anchor = urldefrag(link)
        if re.match(r"[a-z]+:", address):
            continue
        target = (path.parent / address).resolve() if address else path
        if not target.exists() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def section(path: Path, heading: str) -> str:
    return re.split(r"^## ", text_of(path).split(f"## {heading}\n")[1], flags=re.M)[0]


@functools.cache
def defined_in(path: Path) -> frozenset[str]:
    """A module's functions and classes, with methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return frozenset(found)


def test_the_eight_steps_of_a_request_are_in_the_code():
    """Each names files with a function behind them, and methods of theirs."""
    steps = re.findall(r"^(\d)\. (.*?)(?=^\d\. |^\n)", section(DOCS / "architecture.md", "The life of a request"), re.M | re.S)
    assert [number for number, _ in steps] == list("12345678")
    for number, text in steps:
        named = re.findall(r"\[([\w/]+\.py)\]\(\.\./gptoss_jax/\1\)\s+`([\w.]+)`", text)
        assert named and len(named) == text.count(".py](")
        absent = [(file, name) for file, name in named if name not in defined_in(ROOT / "gptoss_jax" / file)]
        here = frozenset().union(*(defined_in(ROOT / "gptoss_jax" / file) for file, _ in named))
        absent += [name for name in re.findall(r"`([A-Z]\w*\.\w+)`", text) if name not in here]
        assert not absent, f"step {number}"


def test_the_wings_are_those_of_the_architecture_test():
    """docs/architecture.md says of each wing, in their order, what it imports."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    [may] = [node.value for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MAY_IMPORT"]
    stated = re.findall(r"^\*\*`(\w+)(?:/|\.py)`\*\* imports (.*?)\.", section(DOCS / "architecture.md", "The wings"), re.M | re.S)
    stated = [(name, "" if others == "no other wing" else " ".join(re.split(r",\s+", others))) for name, others in stated]
    assert stated == list(ast.literal_eval(may).items())


class Page(HTMLParser):
    """What a page holds: its ids, its links, what it loads, its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads, self.texts = set(), set(), set(), []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        links = {found[name] for name in ("href", "src") if found.get(name)}
        self.links |= links
        if tag != "a":
            self.loads |= links

    def handle_data(self, data):
        self.texts.append(data)


page = functools.cache(Page)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the built pages."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        pytest.skip(f"the extra docs is not installed: {', '.join(absent)}")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("name", SHOWN)
def test_docstrings_are_shown(site, name):
    text = page(site / "api" / f"{name}.html").text
    for one in SHOWN[name]:
        first = " ".join(inspect.getdoc(one).split("\n\n")[0].split())
        assert first.replace("`", "") in text, one


@pytest.mark.thorough
def test_every_public_name_is_in_the_api(site):
    ids = set().union(*(page(path).ids for path in (site / "api").glob("*.html")))
    assert not {name for name in gj.__all__ if f"gptoss_jax.{name}" not in ids}


@pytest.mark.thorough
def test_shapes_are_shown(site):
    assert "tokens [B, T] int32, segment_ids [B, T] int32, result [B, T, V] float32." in page(site / "api" / "functions.html").text


@pytest.mark.thorough
def test_every_notebook_has_a_page(site):
    listed = [link for link in re.findall(r'href="([^"]*)"', (site / "index.html").read_text()) if link.startswith("notebooks/")]
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
        assert title in page(site / "notebooks" / f"{notebook.stem}.html").text
        assert f"notebooks/{notebook.stem}.html" in listed


@pytest.mark.thorough
def test_the_tables_have_every_site_and_every_name_of_transformerlens(site):
    page = (site / "interpretability.html").read_text()
    rows = re.findall(r"<tr>\s*<td><code>(.*?)</code></td>\s*<td><code>(.*?)</code></td>\s*<td>", page)
    assert rows == [(name, one.shape) for name, one in sites.SITES.items()]
    theirs = re.findall(r"<tr>\s*<td>((?:<code>[^<]*</code>(?:, )?)+)</td>\s*<td><code>([^<]*)</code></td>\s*</tr>", page)
    assert {name for names, _ in theirs for name in re.findall("<code>(.*?)</code>", names)} == {*aliases.TRANSFORMER_LENS}


@pytest.mark.thorough
def test_every_link_leads_somewhere(site):
    broken = set()
    for path in site.rglob("*.html"):
        for link in page(path).links:
            address, anchor = urldefrag(link)
            if re.match(r"[a-z]+:|//", address):
                continue
            base = site if address.startswith("/") else path.parent
            target = (base / unquote(address).split("?")[0].lstrip("/")).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target.suffix == ".html" and unquote(anchor) not in page(target).ids):
                broken.add((path.relative_to(site).as_posix(), link))
    assert not broken


@pytest.mark.thorough
def test_nothing_is_loaded_from_elsewhere(site):
    outside = re.compile(r"(https?:)?//")
    loaded = {(path.name, link) for path in site.rglob("*.html") for link in page(path).loads if outside.match(link)}
    assert not loaded
    styles = [*site.rglob("*.css"), *site.rglob("*.html")]
    assert not [path for path in styles if re.search(r"url\([\"']?(https?:)?//|@import [^;]*//", path.read_text(encoding="utf-8"))]
