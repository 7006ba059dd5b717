"""What is static of a hook, so that another one is another program, and what is data of that program; checked against a model. No jax."""

from collections.abc import Callable, Hashable
import dataclasses
import difflib
import hashlib
import types
from typing import Any

import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.engine.hooks.hook import END, Capturing, Changing, Hook, Tokens, span
from gptoss_jax.model import aliases
from gptoss_jax.model.sites import AFTER, site_of, sites
from gptoss_jax.quoting import quoted, said

Change = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """A change of some sites, one of a kind's.

    Attributes:
      names: of sites.
      operation: as of `hook.Changing`.
      key: what tells it from others beside these: the function itself, or where and of which shape new values are.
      shape: of the data that each row has for it; None of a function.
      at, function: as of `hook.Changing`.
    """

    names: tuple[str, ...]
    operation: str
    key: Hashable
    shape: tuple[int, ...] | None
    at: Any = dataclasses.field(compare=False)
    function: Change | None = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What two requests must have in common to run in the same programs.

    Attributes:
      captures: names of sites that are kept, in the order of a forward pass.
      steps: changes, in their order.
    """

    captures: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
    """A hook as one model has it.

    Attributes:
      kind: which programs.
      data: of each step, the new values that a row has.
      changed: of each step, which tokens.
      kept: of each name that was asked for, which may be one of TransformerLens', its site and who asked.
    """

    kind: Kind
    data: tuple[np.ndarray | None, ...]
    changed: tuple[Tokens, ...]
    kept: dict[str, tuple[str, Capturing]]

    @property
    def written(self) -> bool:
        """Whether some of what is kept goes anywhere but into the result."""
        return any(one.to is not None for _, one in self.kept.values())

    def spans(self, prompt: int) -> np.ndarray:  # [steps, 2] int32
        """From which position on each step changes tokens, and before which, where the prompt has so many."""
        return np.array([span(tokens, prompt) for tokens in self.changed], np.int32).reshape(-1, 2)

    def ranges(self, prompt: int) -> dict[str, tuple[int, int]]:
        """Which positions are kept, by the name that was asked for."""
        return {name: span(one.tokens, prompt) for name, (_, one) in self.kept.items()}

    def digest(self, prompt: int) -> bytes:
        """Of all values that a row has: equal ones change a token in the same way."""
        digest = hashlib.blake2b(self.spans(prompt).tobytes(), digest_size=16)
        for values in self.data:
            digest.update(b"" if values is None else values.tobytes())
        return digest.digest()


def shape_of(config: Config, name: str, context: int) -> tuple[int, ...]:
    """The shape of one token's value at a site."""
    c = config
    letters = {
        "D": c.hidden_size, "N": c.num_attention_heads, "K": c.num_key_value_heads, "H": c.head_dim, "S": context,
        "E": c.num_local_experts, "A": c.num_experts_per_tok, "V": c.vocab_size,
    }  # fmt: skip
    return tuple(letters[letter] for letter in site_of(name).shape.strip("[]").split(", ")[2:])


def dtype_of(name: str) -> np.dtype:
    """The dtype of a site's values."""
    return np.dtype("int32" if name.endswith("moe.experts") else "float32")


def inside_of(hook: Hook, config: Config, context: int) -> Inside:
    """A hook for a model and a cache of such a context.

    Raises:
      ValueError: a name that is of no site, one that is captured twice, values that do not fit, or a site that cannot be changed.
    """
    found = hook.found.get((config, context))
    if found is None:
        found = hook.found[config, context] = _inside(hook, config, context)
    return found


def _inside(hook: Hook, config: Config, context: int) -> Inside:
    names = sites(config, on_request=True)
    kept: dict[str, tuple[str, Capturing]] = {}
    for one in hook.captures:
        for pattern in one.names:
            for name, site in _matching(names, pattern):
                before = kept.setdefault(name, (site, one))
                if before[1] is not one:
                    raise ValueError(f"a site can be captured once; got {name} in two captures; leave one out, or widen its tokens.")
    steps = [_step(one, _matching(names, one.name), config, context) for one in hook.changes]
    sites_kept = {site for site, _ in kept.values()}
    captures = tuple(name for name in names if name in sites_kept)
    data = tuple(_data(one, step) for one, step in zip(hook.changes, steps, strict=True))
    changed = tuple(one.tokens for one in hook.changes)
    return Inside(Kind(captures, tuple(steps)), data, changed, kept)


def touches(span: tuple[int, int], first: int, last: int) -> bool:
    """Whether some position from `first` to before `last` is in a span."""
    return max(span[0], first) < min(span[1], last, END)


def _matching(names: list[str], pattern: str) -> list[tuple[str, str]]:
    """Names that a pattern means, and the site of each."""
    found = [(one, name) for name in names for one in aliases.meant(pattern, name, named=site_of(name).on_request)]
    if found:
        return found
    if why := aliases.why_absent(pattern):
        raise ValueError(f"a name of TransformerLens must be that of a site; got {quoted(pattern)}; {why}.")
    known = [*names, *(site.replace("{i}", "0") for site in aliases.TRANSFORMER_LENS)]
    near = ", ".join(difflib.get_close_matches(pattern, known, n=3, cutoff=0))
    raise ValueError(f"no site is named {quoted(pattern)}; similar names are {near}; sites(config) lists all.")


def _step(one: Changing, found: list[tuple[str, str]], config: Config, context: int) -> Step:
    names = tuple(dict.fromkeys(site for _, site in found))
    for asked, name in found:
        if aliases.reorders(asked):
            raise ValueError(f"{asked} has its axes in another order, which changes of one token have not; pass {name}.")
        if site_of(name).fixed:
            raise ValueError(f"{name} can be looked at, not patched; patch attention.sink_mass or attention.pattern instead.")
        if one.operation != "call":
            _check_fits(one, name, config, context)
    if one.operation == "call":
        key = _Same(one.function)
        if isinstance(one.function, types.MethodType):  # another object each time that it is named
            key = (_Same(one.function.__self__), _Same(one.function.__func__))
        return Step(names, "call", key, None, None, one.function)
    return Step(names, one.operation, (_words(one.at), one.new.shape), one.new.shape, one.at, None)


def _check_fits(one: Changing, name: str, config: Config, context: int) -> None:
    """Raises ValueError where new values cannot stand in those of one token, or mean several tokens."""
    shape, dtype = (1, 1, *shape_of(config, name, context)), dtype_of(name)
    if dtype.kind == "i" and one.new.dtype.kind != "i":
        raise ValueError(f"{name} holds integers; got {one.new.dtype}; pass integers.")
    if not _of_every_token(one.at, len(shape)):
        raise ValueError(
            f"a change of {name} must leave rows and tokens whole, as np.s_[:, :, ...] does; got {quoted(one.at, 60)}; say which tokens by "
            'tokens="generated", or from a position on.'
        )
    try:
        part = np.broadcast_to(np.zeros((), dtype), shape)[one.at].shape
    except Exception as error:  # of whatever index
        at = quoted(one.at, 60)
        raise ValueError(f"a change must fit its value, {dtype}{shape[2:]} of {name} a token; got {at} ({said(error)}).") from error
    own = (1,) * (len(part) - one.new.ndim) + one.new.shape
    if len(own) != len(part) or any(n not in (1, have) for n, have in zip(own, part, strict=True)):
        raise ValueError(
            f"a change must fit its value, {dtype}{part[2:]} of {name} a token; got {one.new.shape}; pass values as one token has them."
        )


def _of_every_token(at: Any, dimensions: int) -> bool:
    if at is ... or (isinstance(at, slice) and at == slice(None)):
        return True
    if not isinstance(at, tuple) or not at:
        return at == ()
    whole = [isinstance(one, slice) and one == slice(None) for one in at[:2]]
    if at[0] is ... or (whole[0] and len(at) > 1 and at[1] is ...):
        rest = at[1:] if at[0] is ... else at[2:]
        return len(rest) <= dimensions - 2 and not any(one is None or one is ... for one in rest)
    return all(whole)


def _data(one: Changing, step: Step) -> np.ndarray | None:
    if one.operation == "call":
        return None
    return one.new if all(dtype_of(name).kind == "i" for name in step.names) else one.new.astype(np.float32)


class _Same:
    """A thing that is equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _words(at: Any) -> Hashable:
    """An index, as something that is equal where it means the same."""
    if isinstance(at, tuple | list):
        return (type(at).__name__, *(_words(one) for one in at))
    if isinstance(at, slice):
        return ("slice", at.start, at.stop, at.step)
    if hasattr(at, "dtype"):
        array = np.asarray(at)
        return (str(array.dtype), array.shape, array.tobytes())
    return repr(at)


LAST_ONLY = tuple(AFTER)
"""Sites that reading a prompt does not pass: the last norm and the logits."""
