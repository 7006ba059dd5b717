"""Text that grows token by token: whole characters out of bytes, and the end at a stop string. Knows no tokenizer."""

import codecs
from collections import deque
from collections.abc import Sequence


class TextStop:
    """Collects text until a stop string appears.

        stop = TextStop(["\\n\\n"])
        stop.push(b"one\\n")     # "one": the line break may be the beginning of a stop
        stop.push(b"\\ntwo")     # "": found; the text is "one"

    A character costs a few steps for each string, however long these are.

    Args:
      strings: the first of them that is complete ends the text where it begins; of those complete at once, the longest. None is empty.

    Attributes:
      found: the text has ended.
      taken: characters so far, those too that are held back or belong to a stop string.
    """

    def __init__(self, strings: Sequence[str]):
        self._ends = [_End(string) for string in strings]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._said: list[str] = []
        self._held = ""  # may be the beginning of a stop string
        self.found, self.taken = False, 0

    def push(self, data: bytes | str) -> str:
        """Takes more text, or bytes that need not end with a whole character; returns what is now certain to belong to it."""
        return self._take(data if isinstance(data, str) else self._decoder.decode(data))

    def finish(self) -> str:
        """Ends the text and returns all of it."""
        self.end()
        return self.text

    def end(self) -> str:
        """The last of the text, when no more comes: what was held back, half a character too. A stop string may end it even here."""
        if self.found:
            return ""
        last = self._take(self._decoder.decode(b"", True))
        return last if self.found else last + self.flush()

    def flush(self) -> str:
        """What was held back, when what comes next is another text."""
        held, self._held = self._held, ""
        for end in self._ends:
            end.matched = 0
        self._said.append(held)
        return held

    @property
    def text(self) -> str:
        """So far, with what is held back."""
        return "".join(self._said) + ("" if self.found else self._held + self.unfinished.decode(errors="replace"))

    @property
    def unfinished(self) -> bytes:
        """Those of the last pushed that are no whole character yet."""
        return self._decoder.getstate()[0]

    def _take(self, text: str) -> str:
        if self.found:
            return ""
        self.taken += len(text)
        if not self._ends:
            self._said.append(text)
            return text
        held, self._held = self._held, ""
        for place, letter in enumerate(text, 1):
            complete = max(end.take(letter) for end in self._ends)
            if complete:  # the first end, not the first beginning: the same however the text is cut
                self.found, text = True, (held + text[:place])[: len(held) + place - complete]
                self._said.append(text)
                return text
        keep = max(end.matched for end in self._ends)
        text = held + text
        text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._said.append(text)
        return text


class Waiting:
    """Tokens in the order of their text, where some of that is held back: each is told once all that it wrote is shown.

    Args:
      first: number of the first of them.

    Attributes:
      told: number of the first that is not told yet.
      shown: characters so far.
    """

    def __init__(self, first: int = 0):
        self._marks: deque[tuple[int, int]] = deque()  # with this many characters, the tokens before this one are whole
        self._whole = 0  # characters of the tokens that are told
        self.told, self.shown = first, 0

    def write(self, written: int, end: int) -> None:
        """So many characters in all are the text of the tokens before `end`."""
        self._marks.append((written, end))

    def show(self, count: int) -> None:
        """So many more characters are shown."""
        self.shown += count
        while self._marks and self._marks[0][0] <= self.shown:
            self._whole, self.told = self._marks.popleft()

    def stop(self) -> None:
        """Nothing more will be shown: a token of which something was is told too."""
        if self._marks and self._whole < self.shown:
            self._whole, self.told = self._marks.popleft()


class _End:
    """How much of a stop string the text ends with, as Knuth, Morris and Pratt find it: some two steps a character.

    Attributes:
      matched: how many of its characters the text ends with.
    """

    def __init__(self, string: str):
        self._string, self.matched = string, 0
        self._borders = [0]  # of the first characters of the string: how many of them both begin and end these; as far as was needed

    def take(self, letter: str) -> int:
        """The string's length where this completes it, else 0."""
        self.matched = self._after(self.matched, letter)
        if self.matched == len(self._borders):
            begun = self.matched - 1
            self._borders.append(self._after(self._borders[begun], self._string[begun]) if begun else 0)
        return self.matched if self.matched == len(self._string) else 0

    def _after(self, matched: int, letter: str) -> int:
        """How much the text ends with after one more letter."""
        string = self._string
        while matched and string[matched] != letter:
            matched = self._borders[matched]
        return matched + (string[matched] == letter)
