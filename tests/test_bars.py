"""Bars cost themselves only: whatever the terminal, standard error or the environment is like, the work under them goes on."""

import io
import shutil
import sys
import threading
import time

import pytest
import tqdm

import gptoss_jax as gj
from gptoss_jax.bars import Bar
from gptoss_jax.batch.journal import Totals
from gptoss_jax.batch.progress import Progress


class Broken(io.StringIO):
    """A standard error that fails at everything that it is asked for."""

    encoding = "utf-8"

    def __init__(self, error: Exception):
        super().__init__()
        self._error = error

    def write(self, text):
        raise self._error

    flush = isatty = fileno = lambda self, *_: self.write("")


def closed() -> io.TextIOBase:
    file = io.TextIOWrapper(io.BytesIO())
    file.close()
    return file


STREAMS = {
    "none": lambda: None,
    "closed": closed,
    "full": lambda: Broken(OSError(28, "No space left on device")),
    "left": lambda: Broken(BrokenPipeError(32, "Broken pipe")),
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "odd": lambda: Broken(RuntimeError("odd")),
    "no file": lambda: object(),
}


@pytest.fixture(params=STREAMS)
def stderr(request, monkeypatch):
    """Standard error, in some state."""
    stream = STREAMS[request.param]()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def work(**options) -> int:
    """Something with a bar, in two threads."""
    done = []
    with Bar(5, desc="\N{GREEK SMALL LETTER MU}", mininterval=0, **options) as bar:
        for i in range(5):
            thread = threading.Thread(target=lambda: (bar.update(), done.append(1)))
            thread.start()
            thread.join()
            bar.show(i, "\N{SNOWMAN}")
    bar.update()
    bar.close()
    return len(done)


def test_whatever_standard_error_is(stderr):
    assert work() == work(dynamic_ncols=True) == work(shown=False) == 5


@pytest.mark.parametrize("values", [
    {"COLUMNS": "0"}, {"COLUMNS": "-5", "LINES": "x"}, {"COLUMNS": "99999999999999999999"}, {"TERM": "nonsense"}, {"TQDM_NCOLS": "many"},
    {"TQDM_MININTERVAL": "soon"}, {"TQDM_DISABLE": "1"}, {"TQDM_ASCII": "0"}, {"LC_ALL": "xx_YY.nothing"},
], ids=str)  # fmt: skip
def test_whatever_the_environment_says(values, monkeypatch):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert work(dynamic_ncols=True) == 5


@pytest.mark.parametrize("failing", ["__init__", "update", "refresh", "close", "set_postfix_str"])
def test_a_bar_that_fails_is_one_sentence(failing, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no\nsuch terminal")

    monkeypatch.setattr(tqdm.tqdm, failing, fail)
    monkeypatch.setattr(tqdm.tqdm, "__del__", lambda self: None)
    assert work() == 5
    assert [record.getMessage() for record in caplog.records] == ["No progress is shown (RuntimeError: no such terminal)."]


def test_no_library_for_bars(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert work() == 5 and "No progress is shown (ModuleNotFoundError" in caplog.text


def test_a_terminal_without_a_size(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: (_ for _ in ()).throw(OSError(25, "Inappropriate ioctl for device")))
    assert work(dynamic_ncols=True) == 5


def test_what_stops_the_work_stops_it():
    with pytest.raises(KeyboardInterrupt), Bar(5) as bar:
        bar.update()
        raise KeyboardInterrupt


def test_a_checkpoint_loads_whatever_becomes_of_its_bar(stderr, tiny):
    assert gj.load(tiny, experts="packed").config == gj.TINY


def test_a_job_ends_whatever_becomes_of_its_bar(stderr):
    totals = Totals()
    with Progress(totals, 4, generated=lambda: 7, log=None, seconds=0.01) as progress:
        totals.done = 4
        time.sleep(0.05)
    assert progress.summary().startswith("4 of 4 requests")


def test_a_bar_is_shown(capsys):
    assert work() == 5
    shown = capsys.readouterr().err
    assert "0/5" in shown and "4/5" in shown and "\N{SNOWMAN}" in shown
