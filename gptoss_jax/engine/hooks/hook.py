"""What a request asks of the inside while its tokens are drawn: sites whose values are kept, and changes to others. No jax.

    hook = steering({"layers.2.residual_post": vector}, tokens="generated") | capturing("layers.*.residual_post")
    llm.generate(prompt, hook=hook)

Each token passes the sites by itself: a change is made of one token's value, [1, 1, ...] of what `gptoss_jax.patch` has [B, T, ...] of.
Which sites, and functions by their identity, make other programs (`kinds.Kind`); vectors, numbers and positions are data of one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import itertools
import numbers
from typing import Any, Literal, Protocol, runtime_checkable
import weakref

import numpy as np

from gptoss_jax.quoting import quoted

Tokens = Literal["all", "prompt", "generated"] | int
"""Of which tokens: all, those of the prompt, those that were drawn, or from a position on."""

END = 2**31 - 1
LONGEST = 200  # characters of a name or a pattern
_KEYS: "weakref.WeakKeyDictionary[Any, Iterator[int]]" = weakref.WeakKeyDictionary()
FOR_SEVERAL = "pass a Folder, which has a place for each, or None"


@runtime_checkable
class Sink(Protocol):
    """What takes the captures of one request while it runs; `gptoss_jax.research.activations.Writer` is one.

    Its `close()`, if it has one, is called where the answer was read to its end. Both are called by who reads it. What they raise ends that
    answer with "error", and touches no other.
    """

    def write(self, name: str, start: int, array: np.ndarray) -> None:
        """Values of a site [n, ...] at the positions from `start` on, which follow those before."""


@runtime_checkable
class Sinks(Protocol):
    """What has a sink for each of several requests; `gptoss_jax.research.activations.Folder` is one."""

    def request(self, key: str) -> Sink:
        """The sink of a request."""


@dataclasses.dataclass(frozen=True, eq=False)
class Capturing:
    """Sites that are kept.

    Attributes:
      names: of sites, or patterns.
      tokens: of which.
      to: where they go; None into the result.
    """

    names: tuple[str, ...]
    tokens: Tokens
    to: Sink | Sinks | None
    keys: Iterator[int] = dataclasses.field(default_factory=itertools.count, repr=False)  # of the requests that go there

    @property
    def for_one(self) -> bool:
        """Whether they go where those of one request have room."""
        return self.to is not None and not isinstance(self.to, Sinks)


@dataclasses.dataclass(frozen=True, eq=False)
class Changing:
    """A site that is changed, or several by a pattern.

    Attributes:
      name: of a site, or a pattern.
      operation: "add", "multiply", "set", with `new` and `at`; or "call", of a `function`.
      tokens: which.
    """

    name: str
    operation: str
    new: np.ndarray | None
    at: Any
    function: Callable | None
    tokens: Tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Hook:
    """What one request asks of the inside. `a | b` asks for both: first the changes of a, then those of b. Captures are behind all."""

    captures: tuple[Capturing, ...] = ()
    changes: tuple[Changing, ...] = ()
    found: dict = dataclasses.field(default_factory=dict, repr=False)  # what it is of a model, as `kinds.inside_of` found

    def __or__(self, other: "Hook") -> "Hook":
        if not isinstance(other, Hook):
            return NotImplemented
        return Hook(self.captures + other.captures, self.changes + other.changes)

    @property
    def for_one(self) -> bool:
        """Whether some captures go where those of one request have room."""
        return any(one.for_one for one in self.captures)


def capturing(*names: str | Iterable[str], tokens: Tokens = "all", to: Sink | Sinks | None = None) -> Hook:
    """Keeps the named sites' values, as they flow on behind every change.

    Args:
      names: of sites, or patterns such as "layers.*.residual_post".
      tokens: "all", "prompt", "generated", or an int: from this position on. The last token of an answer never goes through the model.
        Values of the prompt are computed, not found in kept prefixes.
      to: what takes them as they come, `write(name, start, array)`; or what has such a one for each request, `request(key)`, with "0",
        "1", ... in the order in which requests are begun, whichever hooks name it. None is the result's `captured`.
    """
    flat = tuple(one for name in names for one in ((name,) if isinstance(name, str) or not isinstance(name, Iterable) else name))
    for name in flat:
        _check_name(name)
    if to is not None and (isinstance(to, type) or not isinstance(to, Sink | Sinks)):
        raise ValueError(
            f"to must have write(name, start, array), or request(key) that returns such a one; got {quoted(to, 60)}; pass a Folder of "
            "gptoss_jax.research.activations, or None."
        )
    return Hook(captures=(Capturing(flat, _checked(tokens), to, _keys_of(to)),)) if flat else Hook()


def _keys_of(to: Sink | Sinks | None) -> Iterator[int]:
    """The numbers of requests that go there: they go on where another hook has the same."""
    try:
        return itertools.count() if to is None else _KEYS.setdefault(to, itertools.count())
    except TypeError:  # what cannot be told apart
        return itertools.count()


def patching(changes: Mapping[str, Any], *, tokens: Tokens = "all") -> Hook:
    """Changes the values of the named sites, as `gptoss_jax.patch` does.

    Args:
      changes: of a name or a pattern, what replaces the value of each token (a number, or an array as one token has it), what
        `hooks.add`, `hooks.scale` and `hooks.replace` make, which are data of one program; or a function of a token's value [1, 1, ...],
        which is compiled once: keep it, and pass the same one again.
      tokens: as for `capturing`.
    """
    if not isinstance(changes, Mapping):
        raise ValueError(f"changes must be a dict of names and changes; got {quoted(changes, 60)}; pass {{name: change}}.")
    return Hook(changes=tuple(_change(name, change, _checked(tokens)) for name, change in changes.items()))


def steering(vectors: Mapping[str, Any], *, scale: float = 1.0, tokens: Tokens = "all") -> Hook:
    """Adds vectors to the values of the named sites: other vectors, other requests, the same program.

    Args:
      vectors: of a name or a pattern, what is added to the value of each token, such as [D].
      scale: times this.
      tokens: as for `capturing`.
    """
    if not isinstance(vectors, Mapping):
        raise ValueError(f"vectors must be a dict of names and vectors; got {quoted(vectors, 60)}; pass {{name: vector}}.")
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not abs(scale) < 1e30:
        raise ValueError(f"scale must be a finite number; got {quoted(scale)}; pass 1 for the vectors as they are.")
    tokens, found = _checked(tokens), []
    for name, vector in vectors.items():
        _check_name(name)
        if callable(vector):
            raise ValueError(f"{quoted(name)} is steered by a vector; got {quoted(vector, 60)}; pass functions to patching.")
        new = numbers_of(name, vector)
        found.append(Changing(name, "add", _kept(new if scale == 1 else new * np.float32(scale)), ..., None, tokens))
    return Hook(changes=tuple(found))


def hook_of(hook: object) -> Hook | None:
    """A hook that asks for something, or None. Raises ValueError for what is none."""
    if hook is None:
        return None
    if not isinstance(hook, Hook):
        raise ValueError(
            f"hook must be made by gptoss_jax.capturing, patching or steering; got {quoted(hook, 60)}; a function of (name, value) is for "
            "forward: pass patching({name: function})."
        )
    return hook if hook.captures or hook.changes else None


def span(tokens: Tokens, prompt: int) -> tuple[int, int]:
    """The positions that are meant, first and one behind the last, where the prompt has so many tokens."""
    if isinstance(tokens, int):
        return tokens, END
    return {"all": (0, END), "prompt": (0, prompt), "generated": (prompt, END)}[tokens]


def _change(name: str, change: Any, tokens: Tokens) -> Changing:
    _check_name(name)
    if callable(change) and all(hasattr(change, field) for field in ("operation", "new", "at")):  # `model.hooks.At`, which knows jax
        return Changing(name, change.operation, _kept(numbers_of(name, change.new)), _kept_index(change.at), None, tokens)
    if callable(change):
        return Changing(name, "call", None, None, change, tokens)
    return Changing(name, "set", _kept(numbers_of(name, change)), ..., None, tokens)


def numbers_of(name: str, value: Any) -> np.ndarray:
    """A caller's numbers: float32, or int32 where they are whole. Raises ValueError where they are none."""
    try:
        found = np.asarray(value)
        if found.dtype.kind == "V" or found.dtype.kind == "f":  # bfloat16 is a kind of its own
            with np.errstate(over="ignore"):
                return found.astype(np.float32)
        if found.dtype.kind in "iu" and found.size and not -(2**31) <= int(found.min()) <= int(found.max()) < 2**31:
            return found.astype(np.float32)
        if found.dtype.kind in "iu":
            return found.astype(np.int32)
    except Exception:  # of whatever it is; a traced value among them
        found = None
    got = quoted(value, 60) if found is None else f"{found.dtype}{found.shape}"
    raise ValueError(f"{quoted(name, 60)} takes numbers that are known, an array of them, or in patching a function; got {got}; pass one.")


def _kept(found: np.ndarray) -> np.ndarray:
    found = found.copy()
    found.flags.writeable = False
    return found


def _kept_index(at: Any) -> Any:
    if type(at) in (tuple, list):
        return type(at)(map(_kept_index, at))
    return _kept(at) if isinstance(at, np.ndarray) else at


def _check_name(name: object) -> None:
    if not isinstance(name, str) or len(name) > LONGEST:
        raise ValueError(f"names must be names of sites; got {quoted(name, 60)}; gptoss_jax.sites(config) lists them.")


def _checked(tokens: Any) -> Tokens:
    if isinstance(tokens, str) and tokens in ("all", "prompt", "generated"):
        return tokens
    if isinstance(tokens, numbers.Integral) and not isinstance(tokens, bool | np.bool) and 0 <= tokens < END:
        return int(tokens)
    raise ValueError(f'tokens must be "all", "prompt", "generated" or a position from 0 on; got {quoted(tokens)}; pass one of them.')
