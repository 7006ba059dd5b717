"""What a storm is made of: a model that holds a NaN, grammars that give up, builders that raise. What is broken is so by its own mark.

Nothing else changes: a request without a mark gets the package's own constraint and builder.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses

import jax.numpy as jnp
import numpy as np

from gptoss_jax import grammar
from gptoss_jax.turns.completion import CompletionBuilder
from gptoss_jax.turns.reply import ReplyBuilder
from gptoss_jax.weights.loading import Model

RARE = "\u2603"  # nano spells it in bytes that no question and no answer of the storm holds
SEEDS = 2**40  # a sampling with at least this seed has a builder that raises
MASK, ADVANCE, LIES = ({"type": "regex", "regex": f"[0-9]{{3,{n}}}"} for n in (91, 92, 93))
GIVES_UP = {  # llguidance stops at its own limit of items after some tokens, and refuses a token that its mask allowed
    "type": "json_schema",
    "json_schema": {
        "name": "wide",
        "schema": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}, "additionalProperties": False},
    },
}


class Broken(Exception):
    """What is raised on purpose."""


def poisoned(model: Model) -> tuple[Model, int]:
    """The model with one NaN, in the embedding of a token that is hardly ever drawn; and that token."""
    token = model.tokenizer.encode(RARE)[-1]
    embedding = model.params.embedding.at[token, 0].set(jnp.nan)
    return dataclasses.replace(model, params=model.params.replace(embedding=embedding)), token


class _Constraint:
    """One that fails after a few tokens: it raises where it is asked, or where it is told, or allows what it then refuses."""

    def __init__(self, inner, way: dict, after: int = 4):
        self._inner, self._way, self._left = inner, way, after

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def advance(self, token: int) -> None:
        self._left -= 1
        if self._left < 0 and self._way == ADVANCE:
            raise Broken("this constraint raises where it is told of a token.")
        self._inner.advance(token)

    def mask(self, out: np.ndarray) -> bool:
        held = self._inner.mask(out)
        if self._left <= 0 and self._way == MASK:
            raise Broken("this constraint raises where it is asked for a mask.")
        if self._left <= 0 and self._way == LIES:
            out[:] = 2**32 - 1
        return held


@contextlib.contextmanager
def marked_ones_raise() -> Iterator[None]:
    """Lets what bears a mark fail, in all threads."""
    forms = {name: getattr(grammar, name) for name in ("for_text", "for_chat")}
    builders = {(kind, name): getattr(kind, name) for kind in (CompletionBuilder, ReplyBuilder) for name in ("__init__", "_add", "_result")}
    for name, make in forms.items():
        setattr(grammar, name, _constraining(make))
    for (kind, name), method in builders.items():
        setattr(kind, name, _marking(method) if name == "__init__" else _raising(method, name))
    try:
        yield
    finally:
        for name, make in forms.items():
            setattr(grammar, name, make)
        for (kind, name), method in builders.items():
            setattr(kind, name, method)


def _constraining(make: Callable) -> Callable:
    def made(tokenizer, response_format, *given, **more):
        constraint = make(tokenizer, response_format, *given, **more)
        return _Constraint(constraint, response_format) if response_format in (MASK, ADVANCE, LIES) else constraint

    return made


def _marking(method: Callable) -> Callable:
    def init(self, request, *given, **more):
        method(self, request, *given, **more)
        seed = request.sampling.seed or 0
        self.raises_in = None if seed < SEEDS else ("_add", "_result")[seed % 2]

    return init


def _raising(method: Callable, name: str) -> Callable:
    def raising(self, *given):
        if self.raises_in == name and (name == "_result" or self._tokens):
            raise Broken(f"this builder raises in {name}.")
        return method(self, *given)

    return raising
