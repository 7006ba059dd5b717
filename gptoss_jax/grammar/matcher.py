"""How far an answer has come in a grammar: llguidance behind three questions, none of which raises.

What the library cannot do within its limits is a `problem` of the one text where it happened. Texts of one grammar share the library's
automaton, which stays broken once a limit was met in it, whoever met it: the others take the grammar anew and go on where they were.
"""

from collections.abc import Callable
import re
from typing import Protocol

from llguidance import LLMatcher
import numpy as np

from gptoss_jax.grammar.numbers import Numbers
from gptoss_jax.grammar.refusals import OF_ONE_TEXT, said
from gptoss_jax.grammar.vocabulary import Vocabulary

NO_MORE = "the grammar allows no further token"


class Source(Protocol):
    """Where a text gets its grammar from: `compiling.Grammar`."""

    @property
    def is_json(self) -> bool:
        """Whether its texts are JSON."""

    def begin(self) -> tuple[LLMatcher, int]:
        """A text at the beginning, and the generation of the automaton that it shares."""

    def alone(self, generation: int) -> LLMatcher:
        """A text at the beginning with an automaton of its own, for one that met a limit in that of this generation."""


class Matcher:
    """The state of one text in one grammar.

    Attributes:
        problem: the limit that the grammar met, such as "more than 20000 alternatives are open ..."; "" as long as it met none. From
            then on the text stays as it is: every token is said to be taken, and none may come.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: Source, *, alone: bool = False):
        """alone: nobody shares the automaton, so that a limit met in it is this text's own."""
        self._vocabulary, self._grammar = vocabulary, grammar
        self._library, self._generation = grammar.begin()
        self._alone = alone
        self._taken: list[int] = []
        self._numbers = Numbers() if grammar.is_json else None
        self.problem = ""

    @property
    def complete(self) -> bool:
        """Whether the text so far satisfies the grammar."""
        return bool(self._ask(lambda library: library.is_accepting()))

    def take(self, token: int) -> bool:
        """Appends a token of text; False, and nothing changes, if the grammar does not allow it.

        True if it meets a limit: then the token is no part of the text, and `problem` says which.
        """
        if self.problem:
            return True
        if token not in self._vocabulary:
            return False
        numbers = self._numbers and self._numbers.after(self._vocabulary.bytes_of(token))
        if self._numbers and numbers is None:
            return False
        for _ in range(2):
            if self._ask(lambda library: library.try_consume_tokens([token])):
                self._taken.append(token)
                self._numbers = numbers
                return True
            alone = self._alone
            mask = np.zeros(self._vocabulary.words, np.uint32)
            if not self.allow(mask) or not mask[token // 32] >> np.uint32(token % 32) & 1:
                return bool(self.problem)
            if alone == self._alone:  # else the automaton broke where it was asked for the token
                break
        self.problem = "the grammar allows a token that it then refuses"
        return True

    def allow(self, out: np.ndarray) -> bool:
        """Writes the ids that may come next; False if there are none. Words past the tokenizer's vocabulary become 0."""
        words = self._vocabulary.words
        out[words:] = 0
        part = out[:words]
        self._ask(lambda library: library.unsafe_compute_mask_ptr(part.ctypes.data, part.nbytes))
        if self.problem or self._library.is_error():
            part[:] = 0
        part &= self._vocabulary.text
        if self._numbers:
            self._numbers.forbid(part, self._vocabulary.dangerous)
        return bool(part.any())

    def copy(self) -> "Matcher":
        """Another text of the grammar, at its beginning."""
        return Matcher(self._vocabulary, self._grammar)

    def _ask[T](self, question: Callable[[LLMatcher], T]) -> T | None:
        """The library's answer, if need be from an automaton of this text's own; None, and there is a problem, if that breaks too."""
        while not self.problem:
            answer, error = None, ""
            try:
                answer = question(self._library)
            except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
                raise
            except BaseException as raised:  # a panic of the library's derives from nothing less
                error = str(raised) or type(raised).__name__
            error = error or self._library.get_error()
            if not error or error.startswith("NoExtension"):
                return answer
            if self._alone or any(re.search(pattern, error) for pattern, _ in OF_ONE_TEXT):
                self.problem = said(error)
            else:
                self._go_alone()
        return None

    def _go_alone(self) -> None:
        """Puts the same text on an automaton of its own: the one that it shared is broken, whoever broke it."""
        self._alone = True
        try:
            self._library = self._grammar.alone(self._generation)
            if self._taken and self._library.try_consume_tokens(self._taken) < len(self._taken):
                self.problem = said(self._library.get_error() or "the text was refused the second time")
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        except BaseException as raised:
            self.problem = said(str(raised) or type(raised).__name__)
