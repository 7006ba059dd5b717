"""The Mosaic GPU kernels inside a lowered program: what each is called, and how it will be launched."""

import dataclasses
import hashlib

import jax
from jax.experimental.mosaic.gpu import dialect
from jax.interpreters import mlir
from jaxlib.mlir import ir

TARGET = "mosaic_gpu_v2"


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel: its name, the name that Mosaic's dump files begin with, and its launch (shared memory: dynamic bytes)."""

    name: str
    files: str
    grid: tuple[int, int, int]
    threads: int
    shared_memory: int


def kernels(lowered: jax.stages.Lowered) -> dict[bytes, Launch]:
    """The launch of each Mosaic kernel of a program, by the kernel's hash."""
    found = {}
    for call in _calls(lowered):
        config = call.attributes["mhlo.backend_config"]
        found[ir.StringAttr(config["kernel_hash"]).value_bytes] = ir.StringAttr(config["module"]).value_bytes
    return {key: _launch(bytecode)[0] for key, bytecode in found.items()}


def share(lowered: jax.stages.Lowered) -> None:
    """Make one kernel of those that are the same but for the number that Mosaic gives each call of a program.

    A function that is jitted itself is lowered once, however often a program calls it; others are once per call, and Mosaic would compile
    a model's kernels anew for every layer.
    """
    first, seen = {}, {}
    for call in _calls(lowered):
        config = call.attributes["mhlo.backend_config"]
        key = ir.StringAttr(config["kernel_hash"]).value_bytes
        if key not in seen:
            code = _launch(ir.StringAttr(config["module"]).value_bytes)[1]
            others = sorted((e.name, str(e.attr)) for e in config if e.name not in ("kernel_hash", "module"))
            seen[key] = first.setdefault((code, tuple(others)), config)
        call.attributes["mhlo.backend_config"] = seen[key]


def rename(lowered: jax.stages.Lowered) -> None:
    """Give the kernels of a program new hashes.

    Mosaic compiles a hash once in a process, and dumps what it compiles: this is for one that was compiled without a dump.
    """
    for call in _calls(lowered):
        with call.context:
            config = call.attributes["mhlo.backend_config"]
            entries = {entry.name: entry.attr for entry in config}
            old = ir.StringAttr(entries["kernel_hash"]).value_bytes
            entries["kernel_hash"] = ir.StringAttr.get(hashlib.sha256(old).digest())
            call.attributes["mhlo.backend_config"] = ir.DictAttr.get(entries)


def _calls(lowered: jax.stages.Lowered) -> list:
    found = []

    def visit(operation):
        if operation.name == "stablehlo.custom_call" and ir.StringAttr(operation.attributes["call_target_name"]).value == TARGET:
            found.append(operation)
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    return found


def _launch(bytecode: bytes) -> tuple[Launch, str]:
    """A kernel's launch, and its code without its number and without the lines of Python it comes from."""
    launches = []

    def visit(operation):
        if operation.name.endswith("gpu.launch"):
            launches.append(operation)
        return ir.WalkResult.ADVANCE

    with mlir.make_ir_context() as context:
        dialect.register_dialect(context)
        before = context.allow_unregistered_dialects
        context.allow_unregistered_dialects = True  # serialised operations carry a version's prefix
        try:
            module = ir.Module.parse(bytecode)
        finally:
            context.allow_unregistered_dialects = before
        module.operation.walk(visit)
        operation = launches[0]
        # Operands of gpu.launch: tokens it waits for, grid (3), block (3), cluster (3 or none) and others, dynamic shared memory, ...
        counts = list(ir.DenseI32ArrayAttr(operation.attributes["operandSegmentSizes"]))
        values = list(operation.operands)
        sizes = [_constant(v) for v in values[counts[0] : counts[0] + 6]]
        memory = _constant(values[sum(counts[:10])]) if counts[10] else 0
        attributes = module.operation.attributes
        launch = Launch(
            name=ir.StringAttr(attributes["sym_name"]).value,
            files=ir.StringAttr(attributes["mosaic_gpu.dump_basename"]).value,
            grid=tuple(sizes[:3]),
            threads=sizes[3] * sizes[4] * sizes[5],
            shared_memory=memory,
        )
        return launch, module.operation.get_asm(enable_debug_info=False).replace(f'"{launch.files}"', "", 1)


def _constant(value) -> int:
    return ir.IntegerAttr(value.owner.attributes["value"]).value
