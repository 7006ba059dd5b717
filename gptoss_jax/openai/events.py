"""What a stream says, whichever endpoint it is of, and how that stands on the wire."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from gptoss_jax import strict_json
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.told import Told
from gptoss_jax.turns.completion import Completion, CompletionPiece
from gptoss_jax.turns.reply import Reply, ReplyPiece
from gptoss_jax.turns.task import Outcome

Event = tuple[str | None, Mapping]  # its name, None where the endpoint names none, and its object
DONE = b"data: [DONE]\n\n"


class Events(Protocol):
    """The events of one stream, in the order in which these are called.

    A request that failed on the way, as its outcome says, has its error in what `end` returns; after `end` and `fail` nothing comes.

    Attributes:
        told: may be replaced before `end`, by one that knows when all was completed.
    """

    told: Told

    def begin(self) -> list[Event]:
        """Before the first piece."""

    def add(self, answer: int, piece: ReplyPiece | CompletionPiece) -> list[Event]:
        """The next piece of an answer; answers are counted through all tasks."""

    def done(self, answer: int, reply: Reply | Completion) -> list[Event]:
        """An answer is whole."""

    def end(self, outcomes: Sequence[Outcome]) -> list[Event]:
        """All of them are; an outcome for each task."""

    def fail(self, refusal: Refused) -> list[Event]:
        """Instead of any of these: nothing more comes."""


def sse(event: Event) -> bytes:
    """An event as text/event-stream has it."""
    name, data = event
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + strict_json.dumps(data) + b"\n\n"
