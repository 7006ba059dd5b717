"""Compiled programs, shared among engines of one shape, as jit keeps what it has compiled; until all that run one have dropped it."""

from collections.abc import Callable, Hashable
from typing import Any
import weakref

import jax

from gptoss_jax.engine.device import decode, lowered, scored
from gptoss_jax.engine.device.state import State
from pallas_kernels import dispatch

_COMPILED: dict[Hashable, Callable] = {}
_USERS: dict[Hashable, weakref.WeakSet] = {}  # of each, those that have not dropped it
_AWAKE: weakref.WeakSet = weakref.WeakSet()  # all that could score


def enter(user: Any) -> None:
    """Somebody may run programs that jit keeps."""
    _AWAKE.add(user)


def program(user: Any, state: State, function: Callable, arguments: tuple, options: dict, result: Any) -> Callable[[], Callable]:
    """What compiles `function`, a jitted one that writes over the state, for arguments like these; or has done so before."""
    leaves, tree = jax.tree.flatten(arguments)
    values = tuple((x.shape, x.dtype, x.sharding) if isinstance(x, jax.Array) else x for x in leaves)
    key = (function, tree, values, *options.items(), lowered.flags(), dispatch.pretending())
    _USERS.setdefault(key, weakref.WeakSet()).add(user)
    if (known := _COMPILED.get(key)) is not None:
        return lambda: known
    compile = lowered.lower(function, arguments, options, donated=state, result=result)
    return lambda: _COMPILED.setdefault(key, compile())


def drop(user: Any) -> None:
    """Lets go of a user's programs, but for those that others run."""
    for key, users in [pair for pair in _USERS.items() if user in pair[1]]:
        users.discard(user)
        if not users:
            _COMPILED.pop(key, None)
    for function in (decode.read, decode.place, decode.decode_chunk):
        function.clear_cache()  # jit's own hold on what was lowered, which nobody calls
    _AWAKE.discard(user)
    if not _AWAKE:
        scored.score.clear_cache()
