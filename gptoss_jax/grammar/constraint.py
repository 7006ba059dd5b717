"""What the engine asks about one request: which tokens may come next. Here for plain text, in `turn.py` for a chat turn."""

from collections.abc import Sequence

import numpy as np

from gptoss_jax.grammar.compiling import compiled
from gptoss_jax.grammar.formats import read_format
from gptoss_jax.grammar.matcher import NO_MORE, Matcher
from gptoss_jax.grammar.vocabulary import vocabulary
from gptoss_jax.quoting import quoted
from gptoss_jax.tokenizer import Tokenizer


class Constraint:
    """The tokens that may come next in one answer. One object for each answer; not for two threads at once.

    Attributes:
        pauses: ids after which `mask` must be asked again before the next token is drawn, where it said that its words hold on;
            () if they never do.
        problem: why the answer ends, or ended, without what was asked for, such as a limit of the grammar's; "" if it does not. To be
            looked at after every `mask` and `advance`. Once there is one only the ends are allowed, and any token is taken: where
            `advance` met it, the token is no part of what the grammar ruled.
    """

    pauses: tuple[int, ...] = ()
    problem: str = ""

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size

    def advance(self, token: int) -> None:
        """Takes the next token of the answer.

        Raises:
            ValueError: the answer is constrained, and `mask` does not allow the token. A limit of the grammar's raises nothing.
        """
        raise NotImplementedError

    def mask(self, out: np.ndarray) -> bool:
        """Writes the allowed ids: bit i % 32 of word i // 32; bits that are no id are 0. At least one id is always allowed.

        Args:
            out: uint32, ceil(vocab_size / 32) words in a row.

        Returns:
            True if they hold for the next token only. False if they hold until a token in `pauses` has come: text is free there,
            and the ids that are not allowed, if any, are control tokens that would lead around the constraint.

        Raises:
            ValueError: out has another shape or type.
        """
        raise NotImplementedError

    def _check(self, out: np.ndarray) -> None:
        words = -(-self._vocab_size // 32)
        if out.dtype != np.uint32 or out.shape != (words,) or not out.flags.c_contiguous:
            raise ValueError(f"out must be {words} words of uint32 in a row; got {out.dtype} {out.shape}; make it so")


class Body:
    """A text that a grammar rules, and the ids that may end it.

    Attributes:
        ended: whether one of those ids has come.
        problem: why the grammar could not be followed to its end; "" if it can.
    """

    def __init__(self, matcher: Matcher, end_ids: Sequence[int]):
        self._matcher, self._end_ids = matcher, tuple(end_ids)
        self.ended = False
        self.problem = ""

    def advance(self, token: int) -> None:
        """Takes a token of text or an end, and anything once there is a problem; raises a ValueError for any other."""
        if token in self._end_ids and (self.ended or self.problem or self._matcher.complete):
            self.ended = True
            return
        if self.problem:
            return
        taken = not self.ended and self._matcher.take(token)
        self.problem = self._matcher.problem
        if not taken:
            raise ValueError(f"a constrained answer must get tokens that its mask allows; got {token}; apply the mask before drawing")

    def mask(self, out: np.ndarray) -> None:
        """Writes what may come: text, the ends where the text is complete, nothing but the ends where text cannot go on."""
        more = not self.ended and not self.problem and self._matcher.allow(out)
        complete = self.ended or self._matcher.complete
        self.problem = self.problem or self._matcher.problem or ("" if more or complete else NO_MORE)
        if self.problem or not more:
            out[:] = 0
        if self.problem or complete:
            allow(out, self._end_ids)


class TextConstraint(Constraint):
    """The whole text is of one grammar, from the first token to an end id."""

    def __init__(self, body: Body, vocab_size: int):
        super().__init__(vocab_size)
        self._body = body

    @property
    def problem(self) -> str:
        return self._body.problem

    def advance(self, token: int) -> None:
        self._body.advance(int(token))

    def mask(self, out: np.ndarray) -> bool:
        self._check(out)
        self._body.mask(out)
        return True


def for_text(tokenizer: Tokenizer, response_format: object, *, end_ids: Sequence[int], vocab_size: int) -> Constraint | None:
    """The constraint of one continuation of plain text; None if response_format asks for none.

    Args:
        tokenizer: the vocabulary of the ids.
        response_format: see `formats`.
        end_ids: what ends the answer. Allowed once the text is complete, and alone where it cannot go on.
        vocab_size: width of the model's logits, at least the tokenizer's.

    Raises:
        ValueError: response_format is not one of those, or nothing satisfies it; there is no end id, or one outside the vocabulary.
    """
    format = read_format(response_format)
    check_width(tokenizer, vocab_size)
    end_ids = tuple(sorted({int(i) for i in end_ids}))
    if not end_ids or not 0 <= end_ids[0] <= end_ids[-1] < vocab_size:
        raise ValueError(f"end_ids must name at least one id below {vocab_size:,}; got {list(end_ids)}; pass the model's end of text")
    if format is None:
        return None
    return TextConstraint(Body(compiled(vocabulary(tokenizer), format, "response_format"), end_ids), vocab_size)


def take(body: Body, tokenizer: Tokenizer, text: str) -> None:
    """Has a body begin with a text that the caller wrote; raises a ValueError if it must not."""
    tokens = tokenizer.encode(text)
    for i, token in enumerate(tokens):
        try:
            body.advance(token)
        except ValueError:
            taken = tokenizer.decode_bytes(tokens[:i]).decode(errors="ignore")
            raise ValueError(
                f"response_format must allow what the last message begins with; got {quoted(text[len(taken) :], 40)} after "
                f"{quoted(taken[-40:], 42)}, at character {len(taken):,}; begin it as the answer is to look, or leave out one of "
                "response_format and continue_final_message"
            ) from None
        if body.problem:
            raise ValueError(f"what the last message begins with must be within the grammar's limits; {body.problem}; shorten it")


def allow(out: np.ndarray, ids: Sequence[int]) -> None:
    """Sets the bits of ids in a mask."""
    for i in ids:
        out[i // 32] |= np.uint32(1 << i % 32)


def check_width(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises a ValueError if the tokenizer has ids that logits of this width do not."""
    if vocab_size < tokenizer.vocab_size:
        raise ValueError(f"vocab_size must be at least the tokenizer's {tokenizer.vocab_size:,}; got {vocab_size:,}; pass the model's")
