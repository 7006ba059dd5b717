"""Which implementation of an op runs: "xla", "mosaic" (a Hopper kernel), or None for the best that covers the call.

A named implementation runs or raises. None compiles the kernel into programs for Hopper GPUs and XLA's form into all others:
`jax.lax.platform_dependent` decides when a program is lowered, so that a process without a GPU compiles for one that is not there.
Kernels that are not to be trusted are left out by name, of what is traced `without` them.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import contextvars
import functools
import logging
from typing import Literal

import jax
import jax.extend

from pallas_kernels import hopper

Implementation = Literal["xla", "mosaic"] | None
CUSTOM_CALLS = ("mosaic_gpu_v2",)  # what kernels are in a lowered program
KERNELS = (  # by the names by which they are checked and left out; moe_grouped is the two launches of many tokens
    "project_qkv", "project_out", "unembed", "attention_decode", "attention_prefill", "router", "route", "moe_gate_up", "moe_down",
    "moe_grouped", "add_norm",
)  # fmt: skip

_left_out: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("left_out", default=frozenset())


@contextlib.contextmanager
def without(names: Iterable[str]) -> Iterator[None]:
    """Within this, ops that are traced without an `implementation` do not take these of the `KERNELS`.

    JAX does not look here when it asks whether it knows a program: the names must come from what it does look at, as a static argument.

    Raises:
      ValueError: a name is none of a kernel.
    """
    if unknown := sorted(set(names) - set(KERNELS)):
        raise ValueError(f"kernels that are left out must be of {', '.join(KERNELS)}; got {', '.join(unknown)}; use these names.")
    token = _left_out.set(_left_out.get() | frozenset(names))
    try:
        yield
    finally:
        _left_out.reset(token)


def run(
    op: str,
    implementation: Implementation,
    *args,
    xla: Callable,
    kernel: Callable[[], tuple[Callable, str | None]] | None = None,
    derived: bool = False,
    kernels: tuple[str, ...] | None = None,
):
    """What `op` makes of `args`.

    Args:
      op: its name, for messages.
      implementation: a name, or None.
      xla: the op in jnp.
      kernel: gives the op as a Hopper kernel, a function or a partial one with hashable keywords, and why that does not cover this call, or
        None where it does. Called only where a kernel may run: it imports the kernel, and with it Mosaic. None where there is no kernel.
      derived: the kernel has XLA's derivatives; not where it writes over an argument.
      kernels: which of the `KERNELS` it launches; None where it is called like the op.

    Raises:
      ValueError: the name is none that any op could have.
      NotImplementedError: the kernel was asked for by name and does not cover this call.
    """
    if implementation not in (None, "xla", "mosaic"):
        raise ValueError(f"implementation must be None, 'xla' or 'mosaic'; got {implementation!r}.")
    if implementation == "xla" or implementation is None and (not for_hopper() or _left_out.get() & set(kernels or (op,))):
        return xla(*args)
    own, uncovered = None, f"{op} has no kernel" if kernel is None else hopper.unsupported()
    if uncovered is None:
        own, uncovered = kernel()
    if uncovered is not None:
        if implementation == "mosaic":
            raise NotImplementedError(f"{op} has no 'mosaic' implementation for this call: {uncovered}; pass None or 'xla'.")
        return xla(*args)
    own = _shared(own)
    if derived:
        own = _derived(own, xla)
    if implementation == "mosaic" or hopper.interpreting() or hopper.emulating():
        return own(*args)
    return jax.lax.platform_dependent(*args, cuda=own, default=xla)


def _derived(kernel: Callable, xla: Callable) -> Callable:
    """The kernel, with the derivatives of XLA's form, which is what runs where a derivative is taken."""
    op = jax.custom_jvp(kernel)
    op.defjvp(lambda primals, tangents: jax.jvp(xla, primals, tangents))
    return op


def _shared(kernel: Callable) -> Callable:
    """The kernel as a function that a program has once, however often it is called: Mosaic takes a second to lower one.

    Calls with the same shapes, of all layers of a model, lower to calls of one function.
    """
    if hopper.interpreting():
        return kernel
    if isinstance(kernel, functools.partial) and not kernel.args:
        return _jitted(kernel.func, tuple(sorted(kernel.keywords.items())))
    return _jitted(kernel, ())


@functools.cache
def _jitted(kernel: Callable, options: tuple[tuple[str, object], ...]) -> Callable:
    return jax.jit(functools.partial(kernel, **dict(options)))


def forget() -> None:
    """Kernels are traced anew: for whoever changes what a tuning table holds."""
    _jitted.cache_clear()


def for_hopper() -> bool:
    """Whether programs that are traced now may run on a Hopper GPU.

    The device that the surrounding abstract mesh names says so (`pallas_kernels.aot` names one that is absent). Where none is named,
    it is the process' default device: `platform_dependent` tells CUDA from other platforms, but not Hopper from other generations.
    """
    named = jax.sharding.get_abstract_mesh().abstract_device
    kind = named.device_kind if named is not None else jax.extend.backend.get_default_device().device_kind
    if hopper.is_hopper(kind) and not hopper.unsupported():
        return True
    if kind.startswith("NVIDIA") or jax.extend.backend.get_default_device().platform == "gpu":
        _log_unused(kind)
    return False


def pretending() -> bool:
    """Whether programs that are traced now are for a device that is only named, or for the interpreter of kernels."""
    return hopper.interpreting() or jax.sharding.get_abstract_mesh().abstract_device is not None


@functools.cache
def _log_unused(kind: str) -> None:
    why = hopper.unsupported() if hopper.is_hopper(kind) else "the Pallas kernels are written for Hopper GPUs (H100, H200)"
    logging.getLogger(__name__).warning("On %s XLA's forms run: %s.", kind, why)
