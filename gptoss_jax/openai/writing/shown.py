"""The pieces of a turn: those that came, and those that a whole reply has beside them. Knows no jax."""

from collections.abc import Iterator
import dataclasses

from gptoss_jax.harmony import Message
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.reply import Reply, ReplyPiece

CUT = ("length", "timeout", "cancelled")  # finish reasons of answers that are not whole


class Shown:
    """How much of each message has come.

    whole = list(Shown().rest(reply, tokenizer))  # a piece for each message
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

    def rest(self, reply: Reply, tokenizer: Tokenizer | None) -> Iterator[ReplyPiece]:
        """What the reply has and no piece had: all of it at first; nothing, as a rule, where its pieces came."""
        for index, message in enumerate(_told(reply)):
            if message.role != "assistant":
                continue
            text, tokens = self._came.get(index, (0, 0))
            begin, end = _content(message, reply, tokenizer) if reply.logprobs is not None else (0, 0)
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
                logprobs=None if reply.logprobs is None else reply.logprobs[begin:end],
                top_logprobs=None if reply.top_logprobs is None else reply.top_logprobs[begin:end],
            )


def last(reply: Reply) -> Message | None:
    """The last message that the user is told."""
    return next((message for message in reversed(reply.parsed.messages) if message.role == "assistant"), None)


def _told(reply: Reply) -> Iterator[Message]:
    """The messages, of the answers what comes before a stop string."""
    room = len(reply.text)
    for message in reply.parsed.messages:
        if message.answers:
            message = dataclasses.replace(message, text=message.text[:room]) if room < len(message.text) else message
            room -= len(message.text)
        yield message


def _content(message: Message, reply: Reply, tokenizer: Tokenizer) -> tuple[int, int]:
    """Places of the tokens of a message's content among all of the turn's."""
    begin, end = message.span
    tokens = reply.tokens[begin:end]
    header = tokens.index(tokenizer.special["<|message|>"]) + 1 if tokenizer.special["<|message|>"] in tokens else 0
    return begin + header, end - (message.end is not None)
