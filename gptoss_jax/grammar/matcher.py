"""A compiled grammar and how far an answer has come in it: llguidance behind three questions."""

import functools
import json

from llguidance import LLMatcher
import numpy as np

from gptoss_jax.grammar.formats import Format
from gptoss_jax.grammar.schema import subschemas
from gptoss_jax.grammar.vocabulary import Vocabulary

# Where JSON allows blanks: none, one, or a line break and an indent. More, and a model could write blanks for ever.
_BLANKS = {"whitespace_pattern": r" |\n {0,16}"}


class Matcher:
    """The state of one text in one grammar.

    Attributes:
        problem: why the library could not go on, such as a limit of its parser; "" as long as it can.
    """

    def __init__(self, vocabulary: Vocabulary, library: LLMatcher):
        self._vocabulary = vocabulary
        self._library = library
        self.problem = ""

    @property
    def complete(self) -> bool:
        """Whether the text so far satisfies the grammar."""
        return self._library.is_accepting()

    def take(self, token: int) -> bool:
        """Appends a token of text; False, and nothing changes, if the grammar does not allow it."""
        return token in self._vocabulary and self._library.try_consume_tokens([token]) == 1

    def allow(self, out: np.ndarray) -> bool:
        """Writes the ids that may come next; False if there are none. Words past the tokenizer's vocabulary become 0."""
        words = self._vocabulary.words
        out[words:] = 0
        part = out[:words]
        self._library.unsafe_compute_mask_ptr(part.ctypes.data, part.nbytes)
        if self._library.is_error():  # also where nothing can follow; then there is no problem if the text is complete
            self.problem = _first_line(self._library.get_error())
            part[:] = 0
        part &= self._vocabulary.text
        return bool(part.any())

    def copy(self) -> "Matcher":
        """Another text at the same place."""
        return Matcher(self._vocabulary, self._library.deep_copy())


def compiled(vocabulary: Vocabulary, format: Format, where: str) -> Matcher:
    """The grammar at the beginning of a text. Compiled once for equal formats; every call returns a Matcher of its own.

    Raises:
        ValueError: the library cannot honour the grammar, or no text satisfies it.
    """
    try:
        return _compiled(vocabulary, format).copy()
    except _Refused as refused:
        got = _innermost(vocabulary, format, str(refused)) if format.kind == "json" else str(refused)
        raise ValueError(f"{where} must be a grammar that can be followed; got {got}; change or drop that part") from None


class _Refused(Exception):
    """What is wrong with a grammar, in a few words."""


@functools.lru_cache(maxsize=256)
def _compiled(vocabulary: Vocabulary, format: Format) -> Matcher:
    return _compile(vocabulary, format)


def _compile(vocabulary: Vocabulary, format: Format) -> Matcher:
    if format.kind == "json":
        grammar = LLMatcher.grammar_from_json_schema(format.text, overrides=_BLANKS)
    else:
        grammar = {"regex": LLMatcher.grammar_from_regex, "lark": LLMatcher.grammar_from_lark}[format.kind](format.text)
    library = LLMatcher(vocabulary.library, grammar, log_level=0)
    if library.is_error():
        raise _Refused(_first_line(library.get_error()))
    if not Matcher(vocabulary, library.deep_copy()).allow(np.zeros(vocabulary.words, np.uint32)):
        raise _Refused("it accepts no text" if not library.is_accepting() else "it accepts nothing but the empty text")
    return Matcher(vocabulary, library)


def _innermost(vocabulary: Vocabulary, format: Format, refused: str) -> str:
    """What is wrong and where, "... at $.properties.x": the innermost schema that is refused for it, if it stands for itself."""
    for path, part in reversed(list(subschemas(json.loads(format.text)))):
        text = json.dumps(part, ensure_ascii=False)
        if '"$ref"' in text:
            continue
        try:
            _compile(vocabulary, Format("json", text))
        except _Refused as same:
            if str(same) == refused or "unsatisfiable" in refused:
                return f"{same} at {path}"
    return refused


def _first_line(error: str) -> str:
    return " ".join(error.partition("\n<state>")[0].partition("\n<backtrace>")[0].split())[:200]
