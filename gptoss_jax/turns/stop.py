"""Text that grows token by token: whole characters out of bytes, and the end at a stop string. Knows no tokenizer."""

import codecs
from collections.abc import Sequence


class TextStop:
    """Collects text until a stop string appears.

        stop = TextStop(["\\n\\n"])
        stop.push(b"one\\n")     # "one": the line break may be the beginning of a stop
        stop.push(b"\\ntwo")     # "": found; the text is "one"

    Args:
      strings: the first of them that is complete ends the text where it begins; of those complete at once, the longest.
    """

    def __init__(self, strings: Sequence[str]):
        self._strings = tuple(strings)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._said: list[str] = []
        self._held = ""  # may be the beginning of a stop string
        self.found = False

    def push(self, data: bytes | str) -> str:
        """Takes more text, or bytes that need not end with a whole character; returns what is now certain to belong to it."""
        return self._take(data if isinstance(data, str) else self._decoder.decode(data))

    def finish(self) -> str:
        """Ends the text and returns all of it."""
        if not self.found:
            self._take(self._decoder.decode(b"", True))
            self._said.append(self._held)
            self._held = ""
        return "".join(self._said)

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = ("" if self.found else self._held), ""
        self._said.append(held)
        return held

    def _take(self, text: str) -> str:
        if self.found:
            return ""
        text = self._held + text
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._strings if stop in text]
        if places:  # the first end, not the first beginning: the same however the text is cut
            self.found, self._held, text = True, "", text[: min(places)[1]]
        else:
            keep = max((n for stop in self._strings for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._said.append(text)
        return text
