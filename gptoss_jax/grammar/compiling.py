"""Grammars compiled once, within budgets: what the library cannot follow, or not for long, is refused with a sentence."""

import contextlib
import json
import threading
import time

from llguidance import LLMatcher, LLParserLimits
import numpy as np

from gptoss_jax.grammar.formats import Format
from gptoss_jax.grammar.kept import Kept
from gptoss_jax.grammar.matcher import Matcher
from gptoss_jax.grammar.refusals import CHANGE, refusal
from gptoss_jax.grammar.vocabulary import Vocabulary
from gptoss_jax.schemas.pointers import subschemas

# Where JSON allows blanks: none, one, or a line break and an indent. More, and a model could write blanks for ever.
_BLANKS = {"whitespace_pattern": r" |\n {0,16}"}
# What the library may spend: on a grammar (fuel: some 30 ns and 200 bytes each), and on one token of one text.
_LIMITS = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
_WALKS, _STEPS, _WALK_SECONDS = 3, 12, 0.3
_WHY_SECONDS = 0.3
_KEPT, _KEPT_CHARACTERS = 256, 4_000_000  # an agent brings a hundred tools, each a grammar of some 300 KB


class Refused(Exception):
    """What is wrong with a grammar, in a few words, and what to do about it."""

    def __init__(self, what: str, remedy: str = CHANGE):
        super().__init__(what)
        self.remedy = remedy


class Grammar:
    """A compiled grammar, for any number of texts and threads."""

    def __init__(self, vocabulary: Vocabulary, format: Format):
        """Compiles; raises Refused if the library cannot follow the grammar, or no text satisfies it."""
        self._vocabulary, self._format = vocabulary, format
        self._lock = threading.Lock()
        self._generation, self._spoilt = 0, False
        self._library = self._compiled()
        self._walk()

    @property
    def is_json(self) -> bool:
        """Whether its texts are JSON."""
        return self._format.kind == "json"

    def begin(self) -> tuple[LLMatcher, int]:
        """A text at the beginning, and the generation of the automaton that it shares with those begun before."""
        with self._lock:
            if self._spoilt:
                with contextlib.suppress(Refused):  # it was compiled before: if not now, the text meets the limit
                    self._library, self._generation, self._spoilt = self._compiled(), self._generation + 1, False
            return self._library.deep_copy(), self._generation

    def alone(self, generation: int) -> LLMatcher:
        """A text at the beginning with an automaton of its own, for one that met a limit in that of this generation."""
        with self._lock:
            self._spoilt |= generation == self._generation  # the next text gets a new one
        return self._compiled()

    def _compiled(self) -> LLMatcher:
        kind, text = self._format.kind, self._format.text
        if kind == "json":
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_BLANKS)
        else:
            grammar = {"regex": LLMatcher.grammar_from_regex, "lark": LLMatcher.grammar_from_lark}[kind](text)
        library = LLMatcher(self._vocabulary.library, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
        if library.is_error():
            raise Refused(*refusal(library.get_error(), kind, text))
        return library

    def _walk(self) -> None:
        """Writes the beginnings of some texts, and refuses a grammar that has none or that meets a limit there."""
        out, end = np.zeros(self._vocabulary.words, np.uint32), time.monotonic() + _WALK_SECONDS
        for walk in range(_WALKS):
            text, draw = Matcher(self._vocabulary, self, alone=True), np.random.default_rng(walk)
            for step in range(_STEPS):
                more = text.allow(out)
                if text.problem:
                    raise Refused(text.problem)
                if not more and not step:
                    raise Refused("it accepts nothing but the empty text" if text.complete else "it accepts no text")
                if not more or time.monotonic() > end:
                    break
                ids = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
                text.take(int(draw.choice(ids) if walk else ids[0]))
                if text.problem:
                    raise Refused(text.problem)


_kept: Kept[Grammar] = Kept(_KEPT, _KEPT_CHARACTERS)


def compiled(vocabulary: Vocabulary, format: Format, where: str) -> Matcher:
    """The grammar at the beginning of a text. Compiled once for equal formats; every call returns a Matcher of its own.

    Raises:
        ValueError: the library cannot honour the grammar, or no text satisfies it, or it meets a limit in its first tokens.
    """
    try:
        grammar = _kept.get((vocabulary, format), len(format.text), lambda: Grammar(vocabulary, format))
        return Matcher(vocabulary, grammar)
    except Refused as refused:
        got = _innermost(vocabulary, format, str(refused)) if format.kind == "json" else str(refused)
        raise ValueError(f"{where} must be a grammar that can be followed; got {got}; {refused.remedy}") from None


def _innermost(vocabulary: Vocabulary, format: Format, refused: str) -> str:
    """What is wrong and where, "... at $.properties.x": the innermost schema that is refused for it, if it stands for itself.

    Looked for as long as it takes little time.
    """
    end = time.monotonic() + _WHY_SECONDS
    for path, part in reversed(list(subschemas(json.loads(format.text)))):
        if time.monotonic() > end:
            break
        text = json.dumps(part, ensure_ascii=False)
        if '"$ref"' in text:
            continue
        try:
            Grammar(vocabulary, Format("json", text))
        except Refused as same:
            if str(same) == refused or "unsatisfiable" in refused:
                return f"{same} at {path}"
    return refused
