"""What the emulator needs of jax that jax does not offer: the one place that names private parts of it.

Mosaic kernels of a function that is lowered for a CPU become calls of Python, and those calls' modules can be lowered for a GPU afterwards.
Hooks are there only while a function is lowered, and are taken away whatever happens.
"""

from collections.abc import Callable
import contextlib
import inspect

import jax
from jax._src import callback
from jax._src.interpreters import mlir
from jax._src.lax.control_flow import platform_index_p
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
    """Within this, each Mosaic kernel that is lowered for a CPU becomes a call of Python.

    Choices between platforms (`jax.lax.platform_dependent`) are made as on a GPU.

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
        first = [i for i, names in enumerate(platforms) if names and {"cuda", "gpu"} & set(names)]
        return [mlir.ir_constant(np.int32((first or [len(platforms) - 1])[0]))]

    rules = {mpmd.mpmd_map_p: pallas, mgpu.core.mosaic_gpu_p: lower_level, platform_index_p: platform}
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, mgpu.core, "_mosaic_gpu_lowering_rule", mgpu.core._mosaic_gpu_lowering_rule)
        mgpu.core._mosaic_gpu_lowering_rule = kernel
        known = mlir._platform_specific_lowerings["cpu"]
        for primitive, rule in rules.items():
            before = known.get(primitive)
            stack.callback(known.pop, primitive, None) if before is None else stack.callback(known.__setitem__, primitive, before)
            mlir.register_lowering(primitive, rule, platform="cpu")
        yield


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
