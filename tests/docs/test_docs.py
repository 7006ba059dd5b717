"""The documentation builds without a warning, shows what the code says, and has no link to nothing; its examples run."""

import functools
from html.parser import HTMLParser
from importlib.util import find_spec
import inspect
import json
import os
from pathlib import Path
import re
import subprocess
import sys
from urllib.parse import unquote, urldefrag

from examples import run_examples
import pytest

import gptoss_jax as gj
from gptoss_jax import adapters, harmony
from gptoss_jax.model import hooks, transformer
from gptoss_jax.research import lenses, plots
import pallas_kernels.attention
import pallas_kernels.moe

ROOT = Path(__file__).parents[2]
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter")
SHOWN = {
    "llm": (gj.LLM, gj.LLM.chat, gj.LLM.score),
    "requests": (gj.Sampling, gj.Task, gj.Completion, gj.Reply, gj.Outcome),
    "checkpoints": (gj.load, gj.save, gj.Model, gj.Config, gj.mesh),
    "functions": (gj.forward, transformer.extend, transformer.prefill, transformer.decode_step),
    "hooks": (gj.capture, gj.patch, gj.select, gj.substitute, hooks.add, hooks.force_experts, hooks.layers_of, hooks.Site),
    "adapters": (adapters.init, adapters.attach, adapters.merge, adapters.load, adapters.save, adapters.Factors),
    "lenses": (lenses.logit_lens, lenses.expert_load, lenses.sink_mass_by_head),
    "plots": (plots.plot_logit_lens, plots.token_strip, plots.TokenStrip),
    "harmony": (harmony.parse, harmony.render, harmony.StreamParser, harmony.Parsed),
    "kernels": (pallas_kernels.attention.attention, pallas_kernels.moe.moe),
}


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


@pytest.mark.parametrize("name", SHOWN)
def test_docstrings_are_shown(site, name):
    text = page(site / "api" / f"{name}.html").text
    for one in SHOWN[name]:
        first = " ".join(inspect.getdoc(one).split("\n\n")[0].split())
        assert first.replace("`", "") in text, one


def test_every_public_name_is_in_the_api(site):
    ids = set().union(*(page(path).ids for path in (site / "api").glob("*.html")))
    assert not {name for name in gj.__all__ if f"gptoss_jax.{name}" not in ids}


def test_shapes_are_shown(site):
    assert "tokens [B, T] int32, segment_ids [B, T] int32, result [B, T, V] float32." in page(site / "api" / "functions.html").text


def test_every_notebook_has_a_page(site):
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    listed = [link for link in re.findall(r'href="([^"]*)"', (site / "index.html").read_text()) if link.startswith("notebooks/")]
    for notebook in notebooks:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
        assert title in page(site / "notebooks" / f"{notebook.stem}.html").text
        assert f"notebooks/{notebook.stem}.html" in listed


def test_the_table_has_every_site(site):
    rows = re.findall(r"<tr>\s*<td><code>(.*?)</code></td>\s*<td><code>(.*?)</code></td>", (site / "research.html").read_text())
    assert rows == [(name, one.shape) for name, one in hooks.SITES.items()]


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


def test_nothing_is_loaded_from_elsewhere(site):
    outside = re.compile(r"(https?:)?//")
    loaded = {(path.name, link) for path in site.rglob("*.html") for link in page(path).loads if outside.match(link)}
    assert not loaded
    styles = [*site.rglob("*.css"), *site.rglob("*.html")]
    assert not [path for path in styles if re.search(r"url\([\"']?(https?:)?//|@import [^;]*//", path.read_text(encoding="utf-8"))]


def test_examples():
    run_examples(ROOT / "docs" / "research.md")
