"""Where in a chat turn a grammar holds: in the body of the final answer and of calls, never in headers and reasoning.

    <|channel|>analysis<|message|>  free  <|end|><|start|>assistant<|channel|>final<|message|>  response_format  <|return|>
    <|channel|>commentary to=functions.f <|constrain|>json<|message|>  the parameters of f  <|call|>

The host decides at each <|message|>, by the header before it, as `harmony.StreamParser` reads it. Messages must be well-formed too:
nothing but <|message|> ends a header, and <|start|> follows <|end|>. So no text that nobody checked is read as a call or as the answer.
Where an answer of some form is asked for, nothing but <|end|> ends a free body: the turn cannot end without the answer or a checked call.
"""

from collections.abc import Collection, Mapping, Sequence
import functools
import json

import numpy as np

from gptoss_jax.grammar.chosen import ChosenTurn
from gptoss_jax.grammar.compiling import compiled
from gptoss_jax.grammar.constraint import Body, Constraint, allow, check_width, take
from gptoss_jax.grammar.formats import of_schema, read_format
from gptoss_jax.grammar.kept import Kept
from gptoss_jax.grammar.matcher import Matcher
from gptoss_jax.grammar.vocabulary import bits, vocabulary
from gptoss_jax.harmony.continued import Continued
from gptoss_jax.harmony.functions import read_functions
from gptoss_jax.harmony.header import Header, answers, called
from gptoss_jax.harmony.parse import StreamParser
from gptoss_jax.schemas.size import count_json
from gptoss_jax.tokenizer import Tokenizer

_TURN_ENDS = ("<|return|>", "<|call|>", "<|endoftext|>")
_NOT_IN_HEADERS = (*_TURN_ENDS, "<|end|>", "<|start|>")
_NOT_IN_BODIES = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

_read: Kept[list[tuple[str, dict | None]]] = Kept(64, 4_000_000)


class TurnConstraint(Constraint):
    """The final answer is of one grammar, the arguments of each known function of another.

    Whatever `harmony.Parsed.final` would return is ruled, also a message without a channel, and whatever it takes for a call of a
    known function, on any channel. A token that a free mask did not allow is taken as the parser would take it, and noted.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        answer: Matcher | None,
        calls: Mapping[str, Matcher],
        vocab_size: int,
        continued: Continued | None = None,
    ):
        super().__init__(vocab_size)
        self.pauses = tuple(tokenizer.special[name] for name in ("<|message|>", "<|end|>"))
        self._tokenizer = tokenizer
        self._answer, self._calls = answer, calls
        self._never = {"header": _NOT_IN_HEADERS, "content": _NOT_IN_BODIES + (_TURN_ENDS if answer else ())}
        self._parser = StreamParser(tokenizer, channel=None if continued is None else continued.channel)
        self._body = None if continued is None else self._body_of(self._parser.header)
        if self._body:
            take(self._body, tokenizer, continued.text)

    def advance(self, token: int) -> None:
        token = int(token)
        if self._body:
            self._body.advance(token)
            self.problem = self._body.problem
            return
        name, state = self._tokenizer.control_name(token), self._parser.state
        if name in self._never.get(state, ()):
            self.problem = f"{name} came where it must not, in a message's {state}"
        if name is not None or state != "content":  # text of a message says nothing of the next
            self._parser.push(token)
        if state != "content" == self._parser.state:
            self._body = self._body_of(self._parser.header)

    def mask(self, out: np.ndarray) -> bool:
        self._check(out)
        if self._body:
            self._body.mask(out)
            self.problem = self._body.problem
            return True
        if self._parser.state == "between":
            out[:] = 0
            allow(out, (self._tokenizer.special["<|start|>"],))
            return True
        out[:] = _all_but(self._tokenizer, self._never.get(self._parser.state, ()), self._vocab_size)
        return False

    def _body_of(self, header: Header) -> Body | None:
        """What rules the message of header; None if it is free."""
        name = called(header.role, header.recipient)
        if name is not None:
            matcher, end = self._calls.get(name), "<|call|>"
        else:
            matcher, end = self._answer if answers(header.role, header.channel, header.recipient) else None, "<|return|>"
        return Body(matcher.copy(), (self._tokenizer.special[end],)) if matcher else None


@functools.lru_cache(maxsize=32)
def _all_but(tokenizer: Tokenizer, names: tuple[str, ...], vocab_size: int) -> np.ndarray:
    flags = np.ones(vocab_size, bool)
    flags[[tokenizer.special[name] for name in names]] = False
    return bits(flags)


def for_chat(
    tokenizer: Tokenizer,
    response_format: object,
    tools: Sequence[Mapping] | None,
    *,
    vocab_size: int,
    continued: Continued | None = None,
    ruled: Collection[str] | None = None,
    names: Collection[str] | None = None,
    required: bool = False,
) -> Constraint | None:
    """The constraint of one turn after a prompt that ends with `<|start|>assistant`; None if there is nothing to constrain.

    Args:
        tokenizer: the vocabulary of the ids.
        response_format: of the final answer, see `formats`; None or {"type": "text"} leaves it free.
        tools: functions whose arguments must satisfy their parameters, in OpenAI's form; one without parameters gets {}. None
            constrains no calls. Calls of other functions are free, but cannot end the turn if an answer is asked for: with a
            response_format, pass the tools that the prompt names.
        ruled: names of those whose arguments must; None for all.
        vocab_size: width of the model's logits, at least the tokenizer's.
        continued: the beginning of the turn, if the prompt ends in the middle of it; the answer's grammar goes on from there.
        names: of the tools, those that alone may be called; None forbids nothing. With names, headers come in the form above only.
        required: one of names must be called, and the turn ends with that: there is no answer.

    Raises:
        ValueError: response_format or tools are not of those, nothing satisfies a schema in them, or no answer begins as it was begun.
    """
    format = read_format(response_format)
    check_width(tokenizer, vocab_size)
    functions = [] if ruled is not None and not ruled and names is None else _functions(tools)
    if format is None and not functions:
        return None
    words = vocabulary(tokenizer)
    answer = None if format is None else compiled(words, format, "response_format")
    calls = {}
    for i, (name, parameters) in enumerate(functions):
        where = f"tools[{i}]: parameters"
        if (ruled is None or name in ruled) and (names is None or name in names):
            calls[name] = compiled(words, of_schema(_NO_PARAMETERS if parameters is None else parameters, where), where)
    if names is not None:
        allowed = {name: calls.get(name) for name, _ in functions if name in names}
        return ChosenTurn(tokenizer, answer, allowed, vocab_size, required=required, continued=continued)
    return TurnConstraint(tokenizer, answer, calls, vocab_size, continued)


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
