"""What the emulator needs of jax that jax does not offer: the one place that names private parts of it.

Mosaic kernels of a function that is lowered for a CPU become calls of Python, and those calls' modules can be lowered for a GPU afterwards.
Hooks are there only while a function is lowered, for the thread that does it, and are taken away whatever happens.
"""

from collections.abc import Callable
import contextlib
import inspect
import threading

import jax
from jax._src import callback
from jax._src.interpreters import mlir
from jax._src.lax.control_flow import cond_p, platform_index_p
from jax._src.pallas import mpmd
from jax._src.pallas.mosaic_gpu import pallas_call_registration as registration
from jax.experimental.mosaic import gpu as mgpu
from jax.extend import core
from jaxlib.mlir import ir
import numpy as np

_kernel_p = core.Primitive("emulated_kernel")
_kernel_p.multiple_results = True


@contextlib.contextmanager
def kernels_as_calls(call: Callable):
    """Within this, each Mosaic kernel that this thread lowers for a CPU becomes a call of Python.

    Choices between platforms (`jax.lax.platform_dependent`) are made as on a GPU. For one thread at a time.

    Args:
      call: (module, shapes in, shapes out, aliases operand -> result) -> function of numpy arrays that gives a list of such. It is called
        when the kernel is lowered; the function, when it is launched. `module`: an MLIR operation.
    """

    def kernel(ctx, *args, module, out_types, inout_types=(), input_output_aliases=(), **rest):
        del out_types, rest
        kept = len(inout_types)
        ends = ((len(ctx.avals_in) - 1 - i, len(ctx.avals_out) - 1 - i) for i in range(kept))  # as the rule for GPUs has it
        shapes = [[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals] for avals in (ctx.avals_in, ctx.avals_out)]
        launch = call(module.operation, *shapes, dict(input_output_aliases) or dict(ends))
        options = {"has_side_effect": True, "returns_token": False}
        results, _, _ = callback.emit_python_callback(ctx, launch, None, list(args), ctx.avals_in, ctx.avals_out, **options)
        return list(results)

    def pallas(ctx, *operands, **params):
        rule = registration.mpmd_map_mgpu_lowering_rule
        return rule(ctx, *operands, **{n: params[n] for n in inspect.signature(rule).parameters if n in params})

    def lower_level(ctx, *operands, **params):
        return mgpu.core._mosaic_gpu_lowering_rule(ctx, *operands, **params)

    def platform(ctx, *, platforms):
        return [mlir.ir_constant(np.int32(_on_gpu(platforms)))]

    def choice(ctx, index, *args, branches, branches_platforms=None, **params):
        if branches_platforms is not None:  # jax would keep the branch that is for a CPU
            branches, index = (branches[_on_gpu(branches_platforms)],), mlir.ir_constant(np.int32(0))
        return mlir._lowerings[cond_p].rule(ctx, index, *args, branches=branches, **params)

    rules = {mpmd.mpmd_map_p: pallas, mgpu.core.mosaic_gpu_p: lower_level, platform_index_p: platform, cond_p: choice}
    with contextlib.ExitStack() as stack:
        before = mgpu.core._mosaic_gpu_lowering_rule
        stack.callback(setattr, mgpu.core, "_mosaic_gpu_lowering_rule", before)
        mgpu.core._mosaic_gpu_lowering_rule = _for_this_thread(kernel, before)
        known = mlir._platform_specific_lowerings["cpu"]
        for primitive, rule in rules.items():
            before = known.get(primitive)
            stack.callback(known.pop, primitive, None) if before is None else stack.callback(known.__setitem__, primitive, before)
            other = before or mlir._lowerings.get(primitive)
            mlir.register_lowering(primitive, _for_this_thread(rule, other and other.rule), platform="cpu")
        yield


def _for_this_thread(rule: Callable, before: Callable | None) -> Callable:
    """A rule of lowering that other threads do not see: theirs is the one that was there before."""
    ours = threading.get_ident()

    def lower(ctx, *args, **params):
        if threading.get_ident() == ours:
            return rule(ctx, *args, **params)
        if before is None:
            raise NotImplementedError("Mosaic GPU's kernels cannot be lowered for a CPU, except in the interpreter.")
        return before(ctx, *args, **params)

    return lower


def _on_gpu(platforms: tuple) -> int:
    """Which of the branches of `jax.lax.platform_dependent` a GPU takes; `platforms` of each, None for the default."""
    for i, names in enumerate(platforms):
        if names is None or "cuda" in names:
            return i
    raise NotImplementedError(f"jax.lax.platform_dependent must have a branch for CUDA, or a default; it has {platforms}.")


def bind(text: str, operands, shapes, aliases: dict[int, int]):
    """What a kernel gives; `text`: its module, as MLIR. For programs that are lowered for a GPU."""
    key = lambda s: (tuple(s.shape), np.dtype(s.dtype))
    return _kernel_p.bind(*operands, text=text, shapes=tuple(map(key, shapes)), aliases=tuple(aliases.items()))


@_kernel_p.def_abstract_eval
def _(*operands, text, shapes, aliases):
    return [jax.core.ShapedArray(*s) for s in shapes]


def _lower(ctx, *operands, text, shapes, aliases):
    mgpu.dialect.register_dialect(ctx.module_context.context)
    module = ir.Module.parse(text, ctx.module_context.context)
    types = [jax.ShapeDtypeStruct(*s) for s in shapes]
    more = {"inout_types": ()} if "inout_types" in inspect.signature(mgpu.core._mosaic_gpu_lowering_rule).parameters else {}
    return mgpu.core._mosaic_gpu_lowering_rule(ctx, *operands, module=module, out_types=types, input_output_aliases=aliases, **more)


mlir.register_lowering(_kernel_p, _lower, platform="cuda")
