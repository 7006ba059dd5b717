"""Who may come in: so many answers at a time, so many bytes of bodies. Who comes too many is told to come again, and costs nothing."""

from collections.abc import Iterator
import contextlib

from gptoss_jax.openai.errors import Refused

ALONE = 128  # answers that a request may ask for, however few may wait


class Gate:
    """Counts what is under way.

    Args:
        most: answers, those that wait for a slot too.
        most_bytes: of bodies that are being read.

    Attributes:
        answers: under way.
        bytes: of bodies that are being read.
        closed: nobody is let in any more.
    """

    def __init__(self, most: int, most_bytes: int):
        self.most, self.most_bytes = most, most_bytes
        self.answers = self.bytes = 0
        self.closed = False

    @contextlib.contextmanager
    def entered(self) -> Iterator["Place"]:
        """A place for one answer. Raises Refused where there is none."""
        if self.closed:
            raise stopping()
        place = Place(self)
        try:
            place.take(1)
            yield place
        finally:
            place.leave()


class Place:
    """What one request takes up."""

    def __init__(self, gate: Gate):
        self._gate, self._answers, self._bytes = gate, 0, 0

    def take(self, answers: int) -> None:
        """So many more answers; what one request may ask for, it may where it is alone."""
        if self._answers + answers > max(self._gate.most, ALONE):
            raise Refused(
                f"a request must ask for at most {max(self._gate.most, ALONE):,} answers, of all its prompts together; "
                f"got {self._answers + answers:,}; send several requests.",
                field="prompt",
            )
        others = self._gate.answers - self._answers
        if others and others + self._answers + answers > self._gate.most:
            raise Refused(
                f"no more than {self._gate.most:,} answers may be under way; {others:,} are; try again.",
                "too_many_waiting",
                status=429,
            )
        self._answers += answers
        self._gate.answers += answers

    def hold(self, count: int) -> None:
        """So many more bytes of its body."""
        if self._gate.bytes + count > self._gate.most_bytes:
            raise Refused(
                f"no more than {self._gate.most_bytes:,} bytes of bodies are read at a time; try again later.", "too_many_bytes", status=429
            )
        self._bytes += count
        self._gate.bytes += count

    def let_go(self) -> None:
        """Its body is read."""
        self._gate.bytes -= self._bytes
        self._bytes = 0

    def leave(self) -> None:
        self.let_go()
        self._gate.answers -= self._answers
        self._answers = 0


def stopping() -> Refused:
    return Refused("the server is stopping and takes no more requests; try again later.", "server_stopping", status=503)
