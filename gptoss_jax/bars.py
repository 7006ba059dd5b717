"""Progress bars on standard error, which cost themselves only: what cannot be shown is not shown, and the work goes on.

A terminal of an odd size or encoding, a closed or full standard error, a setting in the environment that tqdm cannot read: one sentence in
the log, and no bar. Knows nothing of the work.
"""

from collections.abc import Iterator
import contextlib
import logging
import sys
from typing import Any, TextIO

from gptoss_jax.quoting import said

_log = logging.getLogger(__name__)


class Bar:
    """A bar, to be entered; tqdm's, if one is shown.

    Args:
      total: what is to be done.
      shown: whether to show one at all.
      **options: tqdm's: `desc`, `unit`, ...
    """

    def __init__(self, total: int, *, shown: bool = True, **options: Any):
        self._bar = None
        if shown and sys.stderr is not None:  # which it is where it was closed before Python began
            with self._fenced():
                from tqdm import tqdm

                self._bar = tqdm(total=total, file=_Forgiving(sys.stderr), **options)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, more: int = 1) -> None:
        """So much more is done."""
        if (bar := self._bar) is not None:
            with self._fenced():
                bar.update(more)

    def show(self, done: int, note: str) -> None:
        """So much is done in all, with a note behind the bar; draws it anew."""
        if (bar := self._bar) is not None:
            with self._fenced():
                bar.set_postfix_str(note, refresh=False)
                bar.update(done - bar.n)
                bar.refresh()

    def close(self) -> None:
        """Draws it for the last time."""
        bar, self._bar = self._bar, None
        if bar is not None:
            with self._fenced():
                bar.close()

    @contextlib.contextmanager
    def _fenced(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of tqdm, of what it reads, of the terminal
            self._bar = None
            _log.warning("No progress is shown (%s).", said(error))


class _Forgiving:
    """A file that takes whatever is written to it, also where it cannot be written: tqdm draws in a thread of its own, too."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(Exception):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(Exception):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
