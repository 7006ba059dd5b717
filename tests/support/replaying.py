"""An LLM that says what a script says: one token may come at a time, so that engine, stop tokens, parser and wire are the real ones."""

from collections.abc import Callable, Sequence
import dataclasses
import re

import numpy as np

from gptoss_jax import LLM
from gptoss_jax.engine.requests import Constraint, Request

_MESSAGE = re.compile(r"<\|start\|>(.*?)<\|message\|>(.*?)(?:<\|end\|>|<\|call\|>|<\|return\|>)", re.DOTALL)
_HEADER = re.compile(r"(?P<author>[^ <]*)(?: to=(?P<to>[^ <]*))?(?:<\|channel\|>(?P<channel>\w*)(?: to=(?P<late>[^ <]*))?)?")


@dataclasses.dataclass(frozen=True)
class Heard:
    """A message of a prompt: "functions.weather" is the author of that function's result."""

    author: str
    recipient: str | None
    channel: str | None
    text: str


Script = Callable[[list[Heard]], str | None]
"""The harmony text of a turn, which `turn` writes, after a prompt's messages; None where the model is to answer by itself."""


def heard(prompt: str) -> list[Heard]:
    """The messages of a prompt with its control tokens spelled out. What is no conversation is one message, of nobody."""
    found = []
    for header, text in _MESSAGE.findall(prompt):
        parts = _HEADER.match(header)
        found.append(Heard(parts["author"], parts["to"] or parts["late"], parts["channel"], text))
    return found or [Heard("", None, None, prompt)]


def turn(
    *, thought: str = "", said: str = "", calls: Sequence[tuple[str, str]] = (), answer: str | None = None, between: Sequence[str] = ()
) -> str:
    """What an assistant writes after "<|start|>assistant": reasoning, a word to the user, calls (name, arguments), an answer.

    Args:
      between: reasoning before each call but the first.
    """
    messages = [f"<|channel|>analysis<|message|>{thought}"] if thought else []
    messages += [f"<|channel|>commentary<|message|>{said}"] if said else []
    for i, (name, arguments) in enumerate(calls):
        messages += [f"<|channel|>analysis<|message|>{between[i - 1]}"] if 0 < i <= len(between) else []
        messages.append(f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}")
    messages += [f"<|channel|>final<|message|>{answer}"] if answer is not None else []
    return "<|end|><|start|>assistant".join(messages) + ("<|return|>" if answer is not None else "<|call|>")


class Scripted:
    """A constraint that lets nothing through but given tokens, and after them those that end a turn.

    Args:
      tokens: what is to come.
      end: what comes after them.
      asked: the constraint that the request came with: it is told of every token, and one that it forbids is an error.
    """

    pauses = ()

    def __init__(self, tokens: Sequence[int], end: int, asked: Constraint | None):
        self._tokens, self._end, self._asked, self._at = tokens, end, asked, 0

    @property
    def problem(self) -> str:
        return self._asked.problem if self._asked is not None else ""

    def advance(self, token: int) -> None:
        self._at += 1
        if self._asked is not None:
            self._asked.advance(token)

    def mask(self, out: np.ndarray) -> bool:
        token = self._tokens[self._at] if self._at < len(self._tokens) else self._end
        word, bit = divmod(token, 32)
        if self._asked is not None:
            out[:] = 0xFFFFFFFF
            self._asked.mask(out)
            if not out[word] >> bit & 1:
                raise AssertionError(f"what was asked for forbids token {self._at} of the script")
        out[:] = 0
        out[word] = 1 << bit
        return True


def replay(llm: LLM, script: Script) -> LLM:
    """Has all that is asked of an LLM from now on answered by a script."""
    check, tokenizer = llm.engine.check_request, llm.tokenizer

    def check_request(request: Request) -> None:
        check(request)
        if isinstance(request.constraint, Scripted):
            return
        said = script(heard(tokenizer.decode(request.prompt)))
        if said is not None:
            tokens = tokenizer.encode_with_control(said)
            request.constraint = Scripted(tokens, tokenizer.special["<|return|>"], request.constraint)

    llm.engine.check_request = check_request
    return llm


TWO_CALLS = turn(
    thought="Two cities.",
    said="I look at both.",
    calls=[("get_weather", '{"city": "Bern"}'), ("get_weather", '{"city": "Oslo"}')],
    between=["And Oslo."],
)
