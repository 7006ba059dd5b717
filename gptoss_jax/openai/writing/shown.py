"""The pieces of a turn: those that came, and those that a whole reply has beside them. Knows no jax."""

from collections.abc import Iterator

from gptoss_jax.harmony import Message
from gptoss_jax.turns.builder import SAID
from gptoss_jax.turns.reply import Reply, ReplyPiece

CUT = ("length", "timeout", "cancelled")  # finish reasons of answers that are not whole


class Shown:
    """How much of each message has come.

    whole = list(Shown().rest(reply))  # a piece for each message
    """

    def __init__(self):
        self._came: dict[int, list[int]] = {}  # of each message: characters, tokens

    def add(self, piece: ReplyPiece) -> None:
        came = self._came.get(piece.message)
        if came is None:
            self._came[piece.message] = [len(piece.text), len(piece.tokens)]
        else:
            came[0] += len(piece.text)
            came[1] += len(piece.tokens)

    def rest(self, reply: Reply) -> Iterator[ReplyPiece]:
        """What the reply has and no piece had: all of it at first; nothing, as a rule, where its pieces came."""
        for index, message in enumerate(reply.said):
            if message.role != "assistant":
                continue
            text, tokens = self._came.get(index, (0, 0))
            begin, end = message.content
            begin = min(begin + tokens, end)
            if index in self._came and text >= len(message.text) and begin == end:
                continue
            yield ReplyPiece(
                message.text[text:],
                message.channel,
                message.recipient if message.tool_call else None,
                index,
                begins=index not in self._came,
                ends=True,
                tokens=reply.tokens[begin:end],
                **{name: None if (said := getattr(reply, name)) is None else said[begin:end] for name in SAID},
            )


def last(reply: Reply) -> Message | None:
    """The last message that the user is told."""
    return next((message for message in reversed(reply.said) if message.role == "assistant"), None)
