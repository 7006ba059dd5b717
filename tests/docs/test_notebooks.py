"""Every notebook is run as it stands, and prints what is committed: the same words and counts, and nearly the same decimals.

Another processor may sum products in another order. A cell tagged `varies` may print something else each time (times, progress bars,
what training leads to). A notebook that takes minutes has a short run, which it makes where the environment holds `SHORT_NOTEBOOKS`: here
it does, and what such a notebook has committed is its whole run, so that cells whose words depend on that are tagged `varies` too.
"""

from pathlib import Path
import re

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra `notebooks`")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
MOST_CELLS = 25
SHORT = "SHORT_NOTEBOOKS"

DECIMAL = re.compile(r"-?\d+\.(\d+)(?!\.)")


def assert_alike(got: str, wanted: str, source: str) -> None:
    """Words and whole numbers are equal; decimals are within 2 % and one and a half of their last digit."""
    message = f"it printed\n{got}\nwhere this is committed\n{wanted}\nrun the notebook again and save it; the cell is\n{source}"
    words = [" ".join(DECIMAL.sub(" 0.0 ", text).split()) for text in (got, wanted)]
    assert words[0] == words[1], message
    for a, b in zip(DECIMAL.finditer(got), DECIMAL.finditer(wanted), strict=True):
        assert abs(float(a[0]) - float(b[0])) <= 1.5 * 10.0 ** -len(b[1]) + 0.02 * abs(float(b[0])), message


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def varies(cell) -> bool:
    return "varies" in cell.metadata.get("tags", ())


def printed(cell) -> str:
    """What a cell shows as text: its prints and its value, without what goes to stderr."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif output.output_type in ("execute_result", "display_data"):
            parts.append(output.data.get("text/plain", ""))
    return re.sub(r"0x[0-9a-f]+", "0x", "".join(parts)).strip()


def test_they_are_numbered():
    assert len(NOTEBOOKS) >= 10 and [path.stem[:2] for path in NOTEBOOKS] == [f"{i:02}" for i in range(1, len(NOTEBOOKS) + 1)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_whole(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) <= MOST_CELLS
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith(f"# {path.stem[:2]}. ")
    assert 'CHECKPOINT = "nano"' in code[0].source or "CHECKPOINT" not in "".join(cell.source for cell in code)
    assert all(cell.execution_count for cell in code), "run it from its beginning and save it"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert not re.search(r"/(home|root|tmp|Users)/", path.read_text(encoding="utf-8")), "an output names a path of somebody's machine"


def test_what_has_a_short_run_was_committed_whole():
    """Such a notebook prints which of them it was, at the end of what takes long."""
    long = [notebook for notebook in map(read, NOTEBOOKS) if any(SHORT in cell.source for cell in notebook.cells)]
    assert long
    for notebook in long:
        output = "\n".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
        assert re.search(r"^whole run: ", output, re.M) and not re.search(r"^short run: ", output, re.M)


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_is_committed(path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv(SHORT, "1")
    for name in ("XLA_FLAGS", "NPROC"):  # this process' own; a notebook sets what it needs
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    committed, notebook = read(path), read(path)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    for before, cell in zip(committed.cells, notebook.cells, strict=True):
        if cell.cell_type == "code" and not varies(cell):
            assert_alike(printed(cell), printed(before), cell.source)


@pytest.mark.parametrize(
    "got, alike", [("a 0.84 b 3", True), ("a 0.85 b  3", True), ("a 0.89 b 3", False), ("a 0.84 b 4", False), ("c 0.84 b 3", False)]
)
def test_what_counts_as_alike(got, alike):
    if alike:
        assert_alike(got, "a 0.84 b 3", "")
    else:
        with pytest.raises(AssertionError, match="it printed"):
            assert_alike(got, "a 0.84 b 3", "")
