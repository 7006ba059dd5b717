"""PEFT's patterns: regular expressions that give some modules another alpha, matched in bounded time.

An expression such as (a+)+$ takes Python's `re` longer than anybody waits; `regex`, which reads the same expressions, can be told to stop.
"""

from collections.abc import Mapping
from pathlib import Path
import re
import time
import warnings

import regex

from gptoss_jax.quoting import quoted

_LONGEST = 256  # characters of a pattern
_SECONDS = 1.0  # of this thread, for all patterns of an adapter on all modules
_REPEATS = set("*+?{|(")  # an expression without them takes a step for each of its characters
_NOT_IN_RE = regex.compile(r"(?<!\\)(?:\\\\)*\{(?![0-9]*,?[0-9]*\})")  # {e<=1}: what looks about alike, in `regex` alone


class Patterns:
    """An alpha_pattern.

    Args:
        alphas: by expression.
        path: their file, for errors.

    Raises:
        ValueError: one is too long, or no expression.
    """

    def __init__(self, alphas: Mapping[str, float], path: Path) -> None:
        self._path, self._left = path, _SECONDS
        self._compiled = [(key, self._compile(key), alpha) for key, alpha in alphas.items()]

    def alpha(self, module: str, default: float) -> float:
        """That of the first expression that ends the module's name, as PEFT has it. Raises ValueError when the time is spent."""
        for key, compiled, alpha in self._compiled:
            if isinstance(compiled, re.Pattern):
                if compiled.match(module):
                    return alpha
                continue
            began = time.thread_time()
            try:
                matched = self._left > 0 and compiled.match(module, timeout=self._left)
            except TimeoutError:
                self._left = 0.0
            else:
                self._left -= time.thread_time() - began
                if matched:
                    return alpha
            if self._left <= 0:
                raise ValueError(
                    f"the expressions in alpha_pattern of {self._path} must match within {_SECONDS:g} s; {quoted(key)} takes longer on "
                    f"{module}; write the modules' names."
                )
        return default

    def _compile(self, key: str) -> re.Pattern | regex.Pattern:
        if len(key) > _LONGEST:
            raise ValueError(f"an expression in alpha_pattern of {self._path} must have at most {_LONGEST} characters; got {len(key):,}.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of what other versions read otherwise
                if _NOT_IN_RE.search(key):
                    raise ValueError("a brace that is no count")
                re.compile(key)  # refuses the rest of what is `regex`' own, recursion above all
                if not _REPEATS & set(key):
                    return re.compile(rf"(.*\.)?({key})$")
                return regex.compile(rf"(.*\.)?({key})$", regex.VERSION0)
        except (re.error, regex.error, ValueError, OverflowError, RecursionError, Warning) as error:
            raise ValueError(
                f"alpha_pattern of {self._path} must be of regular expressions; {quoted(key)} is none: {str(error)[:200]}; write "
                "the modules' names."
            ) from None
