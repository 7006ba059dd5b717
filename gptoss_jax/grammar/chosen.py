"""A turn in which not everything may be called, or something must be: its headers are ruled too, and reasoning alone stays free.

    <|channel|>analysis<|message|>  free  <|end|>       as often as it likes, then
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>  the parameters of f  <|call|>

Where a call is required the turn has no other way, and cannot end before it. Where none is, there are words before a call
(commentary) and the answer (final) too, and of the calls only those that are allowed.
"""

from collections.abc import Mapping
import functools

import numpy as np

from gptoss_jax.grammar.constraint import Body, Constraint, allow, take
from gptoss_jax.grammar.header import Said, Tree, trees
from gptoss_jax.grammar.matcher import Matcher
from gptoss_jax.grammar.vocabulary import vocabulary
from gptoss_jax.harmony.continued import Continued
from gptoss_jax.tokenizer import Tokenizer


class ChosenTurn(Constraint):
    """A turn of such headers alone; what is free in it is text, and the one token that ends it.

    Args:
        answer: what rules the answer, None if it is free.
        calls: the functions that may be called, and what rules their arguments, None if they are free.
        required: whether one of them must be.
        continued: the beginning of the turn, if the prompt ends in the middle of it; then none is required.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        answer: Matcher | None,
        calls: Mapping[str, Matcher | None],
        vocab_size: int,
        *,
        required: bool,
        continued: Continued | None = None,
    ):
        super().__init__(vocab_size)
        self.pauses = (tokenizer.special["<|end|>"],)
        self._tokenizer, self._answer, self._calls = tokenizer, answer, calls
        first, self._later = trees(tokenizer, tuple(calls), required=required)
        self._header: Tree | None = first  # what may follow in the header that is being written
        self._body: Body | None = None
        self._end, self._over = -1, False  # of a free body: the token that ends it, and whether the turn has ended with it
        if continued is not None:
            self._begin(Said(continued.channel))
            if self._body:
                take(self._body, tokenizer, continued.text)

    def advance(self, token: int) -> None:
        token = int(token)
        if self._header is not None:
            after = self._header.get(token)
            if after is None:
                raise ValueError(f"a ruled header must get tokens that its mask allows; got {token}; apply the mask before drawing")
            if isinstance(after, Said):
                self._begin(after)
            else:
                self._header = after
        elif self._body:
            self._body.advance(token)
            self.problem = self._body.problem
        elif token == self._end:
            self._header = self._later if token in self.pauses else None
            self._over = self._header is None
        elif self._over or token not in vocabulary(self._tokenizer):
            name = self._tokenizer.control_name(token) or f"token {token}"
            self.problem = f"{name} came where it must not, in a message's content"

    def mask(self, out: np.ndarray) -> bool:
        self._check(out)
        if self._body:
            self._body.mask(out)
            self.problem = self._body.problem
        elif self._header is None and not self._over and not self.problem:
            out[:] = _text_and(self._tokenizer, self._end, self._vocab_size)
            return False
        else:
            out[:] = 0
            allow(out, (self._end,) if self._header is None else self._header)
        return True

    def _begin(self, said: Said) -> None:
        """The body of the message whose header has said that."""
        if said.function is not None:
            matcher, end = self._calls[said.function], "<|call|>"
        else:
            matcher, end = (self._answer, "<|return|>") if said.channel == "final" else (None, "<|end|>")
        self._header, self._end = None, self._tokenizer.special[end]
        self._body = Body(matcher.copy(), (self._end,)) if matcher else None


@functools.lru_cache(maxsize=32)
def _text_and(tokenizer: Tokenizer, end: int, vocab_size: int) -> np.ndarray:
    """The mask of all ids that are text, and of one more."""
    text = vocabulary(tokenizer).text
    out = np.zeros(-(-vocab_size // 32), np.uint32)
    out[: len(text)] = text
    allow(out, (end,))
    return out
