"""The Mosaic GPU kernels inside a lowered program: what each is called, and how it will be launched."""

import contextlib
import dataclasses
import hashlib
import io

import jax
from jax.experimental.mosaic.gpu import dialect
from jax.interpreters import mlir
from jaxlib.mlir import ir

TARGET = "mosaic_gpu_v2"
_DUMPS = "mosaic_gpu.dump_basename"  # a kernel's attribute: what the names of its dumps begin with


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel: its name, what the names of its dumps begin with, and its launch (shared memory: dynamic bytes)."""

    name: str
    files: str
    grid: tuple[int, int, int]
    threads: int
    shared_memory: int


def kernels(lowered: jax.stages.Lowered) -> dict[bytes, Launch]:
    """The launch of each Mosaic kernel of a program that `share` has seen, by the kernel's hash."""
    found = {}
    for call in _calls(lowered):
        config = call.attributes["mhlo.backend_config"]
        found[ir.StringAttr(config["kernel_hash"]).value_bytes] = ir.StringAttr(config["module"]).value_bytes
    return {key: _launch(bytecode) for key, bytecode in found.items()}


def share(lowered: jax.stages.Lowered) -> None:
    """Make one kernel of those that are the same but for the place of their call, and name the dumps of each by its hash.

    A function that is jitted itself is lowered once, however often a program calls it; others are once per call, and Mosaic would compile
    a model's kernels anew for every layer. Dumps have a number in their names: of the call with jax 0.11, with 0.12 one that is given when
    a kernel is compiled, so that nobody knows whose they are.
    """
    first, seen = {}, {}
    for call in _calls(lowered):
        config = call.attributes["mhlo.backend_config"]
        key = ir.StringAttr(config["kernel_hash"]).value_bytes
        if key not in seen:
            code, module = _named(ir.StringAttr(config["module"]).value_bytes, key.hex())
            others = sorted((e.name, str(e.attr)) for e in config if e.name not in ("kernel_hash", "module"))
            seen[key] = first.setdefault((code, tuple(others)), _with(call, module=module))
        call.attributes["mhlo.backend_config"] = seen[key]


def rename(lowered: jax.stages.Lowered, salt: bytes = b"") -> None:
    """Give the kernels of a program new hashes, others for another `salt`.

    Mosaic compiles a hash once in a process, and dumps what it compiles: this is for one that was compiled without a dump.
    """
    for call in _calls(lowered):
        old = ir.StringAttr(call.attributes["mhlo.backend_config"]["kernel_hash"]).value_bytes
        call.attributes["mhlo.backend_config"] = _with(call, kernel_hash=hashlib.sha256(old + salt).digest())


def _calls(lowered: jax.stages.Lowered) -> list:
    found = []

    def visit(operation):
        if operation.name == "stablehlo.custom_call" and ir.StringAttr(operation.attributes["call_target_name"]).value == TARGET:
            found.append(operation)
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    return found


def _with(call, **entries: bytes) -> ir.DictAttr:
    """The configuration of a call, with other entries."""
    with call.context:
        others = {entry.name: entry.attr for entry in call.attributes["mhlo.backend_config"]}
        return ir.DictAttr.get(others | {name: ir.StringAttr.get(value) for name, value in entries.items()})


@contextlib.contextmanager
def _module(bytecode: bytes):
    """Within this, the module that a kernel is."""
    with mlir.make_ir_context() as context:
        dialect.register_dialect(context)
        before = context.allow_unregistered_dialects
        context.allow_unregistered_dialects = True  # serialised operations carry a version's prefix
        try:
            module = ir.Module.parse(bytecode)
        finally:
            context.allow_unregistered_dialects = before
        yield module.operation


def _named(bytecode: bytes, name: str) -> tuple[str, bytes]:
    """A kernel's code, without a name for its dumps and the lines of Python it comes from; and its bytecode, with `name` for its dumps."""
    with _module(bytecode) as module:
        module.attributes[_DUMPS] = ir.UnitAttr.get()
        code = module.get_asm(enable_debug_info=False)
        module.attributes[_DUMPS] = ir.StringAttr.get(name)
        buffer = io.BytesIO()
        module.write_bytecode(buffer, desired_version=0)
        return code, buffer.getvalue()


def _launch(bytecode: bytes) -> Launch:
    launches = []

    def visit(operation):
        if operation.name.endswith("gpu.launch"):
            launches.append(operation)
        return ir.WalkResult.ADVANCE

    with _module(bytecode) as module:
        module.walk(visit)
        operation = launches[0]
        # Operands of gpu.launch: tokens it waits for, grid (3), block (3), cluster (3 or none) and others, dynamic shared memory, ...
        counts = list(ir.DenseI32ArrayAttr(operation.attributes["operandSegmentSizes"]))
        values = list(operation.operands)
        sizes = [_constant(v) for v in values[counts[0] : counts[0] + 6]]
        return Launch(
            name=ir.StringAttr(module.attributes["sym_name"]).value,
            files=ir.StringAttr(module.attributes[_DUMPS]).value,
            grid=tuple(sizes[:3]),
            threads=sizes[3] * sizes[4] * sizes[5],
            shared_memory=_constant(values[sum(counts[:10])]) if counts[10] else 0,
        )


def _constant(value) -> int:
    return ir.IntegerAttr(value.owner.attributes["value"]).value
