"""Where in a chat turn a grammar holds: in the body of the final answer and of calls, never in headers and reasoning.

    <|channel|>analysis<|message|>  free  <|end|><|start|>assistant<|channel|>final<|message|>  response_format  <|return|>
    <|channel|>commentary to=functions.f <|constrain|>json<|message|>  the parameters of f  <|call|>

The host decides at each <|message|>, by the header before it, read as `harmony.parse` reads it. Where an answer of some form is
asked for, messages must be well-formed too: nothing but <|message|> ends a header, nothing but <|end|> a free body, and <|start|>
follows it. So the turn cannot end without the answer or a checked call, and no text that nobody checked is read as the answer.
"""

from collections.abc import Mapping, Sequence
import functools
import json

import numpy as np

from gptoss_jax.grammar.compiling import compiled
from gptoss_jax.grammar.constraint import Body, Constraint, allow, check_width
from gptoss_jax.grammar.formats import of_schema, read_format
from gptoss_jax.grammar.kept import Kept
from gptoss_jax.grammar.matcher import Matcher
from gptoss_jax.grammar.vocabulary import bits, vocabulary
from gptoss_jax.harmony.functions import read_functions
from gptoss_jax.harmony.header import Header, read_header
from gptoss_jax.harmony.parsed import Message
from gptoss_jax.schemas.size import count_json
from gptoss_jax.tokenizer import Tokenizer

_TURN_ENDS = ("<|return|>", "<|call|>", "<|endoftext|>")
_NOT_IN_HEADERS = (*_TURN_ENDS, "<|end|>", "<|start|>")
_NOT_IN_BODIES = (*_TURN_ENDS, "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

_read: Kept[list[tuple[str, dict | None]]] = Kept(64, 4_000_000)


class TurnConstraint(Constraint):
    """The final answer is of one grammar, the arguments of each known function of another.

    Whatever `harmony.Parsed.final` would return is ruled, also a message without a channel, and whatever it takes for a call of a
    known function, on any channel. A token that a free mask did not allow is taken as the parser would take it, and noted.
    """

    def __init__(self, tokenizer: Tokenizer, answer: Matcher | None, calls: Mapping[str, Matcher], vocab_size: int):
        super().__init__(vocab_size)
        self.pauses = tuple(tokenizer.special[name] for name in ("<|message|>", "<|end|>")[: 1 + bool(answer)])
        self._tokenizer = tokenizer
        self._answer, self._calls = answer, calls
        self._never = {"header": _NOT_IN_HEADERS, "content": _NOT_IN_BODIES} if answer else {}
        self._body: Body | None = None
        self._state, self._role, self._header = "header", "assistant", Header("assistant")
        self._pieces: list[tuple[str, bytearray]] = [("", bytearray())]

    def advance(self, token: int) -> None:
        token = int(token)
        if self._body:
            self._body.advance(token)
            self.problem = self._body.problem
            return
        name = self._tokenizer.control_name(token)
        if name in self._never.get(self._state, ()):
            self.problem = f"{name} came where it must not, in a message's {self._state}"
        if name is None:
            if self._state == "header":
                self._pieces[-1][1].extend(self._tokenizer.token_bytes(token) or b"\xff")
        elif name == "<|start|>":
            self._open(None)
        elif name in (*_TURN_ENDS, "<|end|>"):
            self._state = "between"
        elif name in ("<|channel|>", "<|message|>", "<|constrain|>"):
            self._header_token(name)

    def mask(self, out: np.ndarray) -> bool:
        self._check(out)
        if self._body:
            self._body.mask(out)
            self.problem = self._body.problem
            return True
        if self._answer and self._state == "between":
            out[:] = 0
            allow(out, (self._tokenizer.special["<|start|>"],))
            return True
        out[:] = _all_but(self._tokenizer, self._never.get(self._state, ()), self._vocab_size)
        return False

    def _header_token(self, name: str) -> None:
        """Takes a control token that belongs to headers, wherever it came."""
        if self._state == "between" and name != "<|constrain|>":
            self._open("assistant")
        elif self._state == "content" and name == "<|channel|>":
            self._open(self._header.role)
        if self._state != "header":
            return
        if name != "<|message|>":
            self._pieces.append((name, bytearray()))
            return
        pieces = [(marker, data.decode(errors="replace")) for marker, data in self._pieces]
        self._header = read_header(pieces, self._role, whole=True)
        self._state = "content"
        self._body = self._body_of(self._header)

    def _open(self, role: str | None) -> None:
        self._state, self._role, self._pieces = "header", role, [("", bytearray())]

    def _body_of(self, header: Header) -> Body | None:
        """What rules the message of header; None if it is free."""
        call = Message(header.role, "", (0, 0), recipient=header.recipient).tool_call
        if call:
            matcher, end = self._calls.get(call.name), "<|call|>"
        else:
            answers = header.role == "assistant" and header.channel in ("final", None)
            matcher, end = self._answer if answers else None, "<|return|>"
        return Body(matcher.copy(), (self._tokenizer.special[end],)) if matcher else None


@functools.lru_cache(maxsize=32)
def _all_but(tokenizer: Tokenizer, names: tuple[str, ...], vocab_size: int) -> np.ndarray:
    flags = np.ones(vocab_size, bool)
    flags[[tokenizer.special[name] for name in names]] = False
    return bits(flags)


def for_chat(tokenizer: Tokenizer, response_format: object, tools: Sequence[Mapping] | None, *, vocab_size: int) -> Constraint | None:
    """The constraint of one turn after a prompt that ends with `<|start|>assistant`; None if there is nothing to constrain.

    Args:
        tokenizer: the vocabulary of the ids.
        response_format: of the final answer, see `formats`; None or {"type": "text"} leaves it free.
        tools: functions whose arguments must satisfy their parameters, in OpenAI's form; one without parameters gets {}. None
            constrains no calls. Calls of other functions are free, but cannot end the turn if an answer is asked for: with a
            response_format, pass the tools that the prompt names.
        vocab_size: width of the model's logits, at least the tokenizer's.

    Raises:
        ValueError: response_format or tools are not of those, or nothing satisfies a schema in them.
    """
    format = read_format(response_format)
    check_width(tokenizer, vocab_size)
    functions = _functions(tools)
    if format is None and not functions:
        return None
    words = vocabulary(tokenizer)
    answer = None if format is None else compiled(words, format, "response_format")
    calls = {}
    for i, (name, parameters) in enumerate(functions):
        where = f"tools[{i}]: parameters"
        calls[name] = compiled(words, of_schema(_NO_PARAMETERS if parameters is None else parameters, where), where)
    return TurnConstraint(tokenizer, answer, calls, vocab_size)


def _functions(tools: Sequence[Mapping] | None) -> list[tuple[str, dict | None]]:
    """Name and parameters of each function, through the door that a prompt's tools go through, which is slow: once for equal ones."""
    if not tools:
        return []
    count_json(tools, "tools")
    try:
        text = json.dumps(tools)
    except (TypeError, ValueError, RecursionError):
        return _through_the_door(tools)  # which says what is wrong
    return _read.get(text, len(text), lambda: _through_the_door(json.loads(text)))


def _through_the_door(tools: Sequence[Mapping]) -> list[tuple[str, dict | None]]:
    return [(function.name, function.parameters) for function in read_functions(tools)]
