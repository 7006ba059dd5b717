"""What a jitted function compiles to on an H100 or H200, found out without one: registers, spills, launches, bytes.

    report = aot.compile(fn, jax.ShapeDtypeStruct((16, 2880), jnp.bfloat16), gpu="h200")
    report.launches, report.temporary_bytes, [(k.name, k.registers, k.spill_bytes) for k in report.kernels]

Needs the extra `aot` (XLA's CUDA plugin, ptxas, nvdisasm) and neither GPU nor driver. Nothing here says how long a program runs.
Not for several threads at a time: kernels are dumped through variables of the process' environment.
"""

from collections.abc import Callable, Mapping
import concurrent.futures
import dataclasses
import functools
import importlib.resources
import math
import operator
from pathlib import Path
import tempfile
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from pallas_kernels import hopper
from pallas_kernels.aot import assembly, environment, launches, mosaic
from pallas_kernels.aot.kernel import Assembly as Assembly
from pallas_kernels.aot.kernel import Kernel as Kernel
from pallas_kernels.aot.kernel import ctas_per_sm as ctas_per_sm

GPUS = ("h100", "h200")

_INSTALL = "compiling for a GPU that is not there needs the extra `aot`: pip install 'gptoss-jax[aot]'"
_known: dict[bytes, assembly.Usage] = {}  # of Mosaic kernels, by hash: Mosaic compiles, and dumps, a kernel once in a process


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled program. Bytes are one device's.

    Attributes:
      kernels: each different kernel that it launches, in order of first launch; those of libraries (cuBLAS, cuDNN, NCCL) are unknown.
      launches: what it launches, in order: kernels by name, others as XLA's kind and instruction ("Copy copy.3"). What lies in a loop or
        branch occurs once, after "while.1 body / ".
      argument_bytes, output_bytes: of arguments and results.
      alias_bytes: of results that are written over donated arguments; part of `output_bytes`.
      temporary_bytes: beside them.
      seconds: that tracing, lowering and compiling took, each different kernel compiled once.
      hlo: the optimised program, scheduled, without the kernels' code.
    """

    kernels: tuple[Kernel, ...]
    launches: tuple[str, ...]
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    seconds: float
    hlo: str = dataclasses.field(repr=False)

    @property
    def pallas_kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are not XLA's."""
        return tuple(k for k in self.kernels if k.pallas)


def unavailable() -> str | None:
    """Why nothing can be compiled here, and what to do about it; None if it can."""
    if reason := hopper.unsupported():
        return f"{_INSTALL} ({reason})."
    absent = [name for name in assembly.TOOLS if assembly.tool(name) is None]
    if absent:
        return f"{_INSTALL} (missing: {', '.join(absent)})."
    try:
        _topology(GPUS[0], 1)
    except (NotImplementedError, RuntimeError) as error:
        return f"{_INSTALL} ({error}). Where it is installed, set JAX_PLATFORMS=cpu before JAX starts."
    return None


def target(gpu: str) -> str:
    """What XLA is told of a GPU: a protocol buffer in text form, with its memory and bandwidth.

    Raises:
      ValueError: no such GPU.
    """
    _check(gpu)
    return importlib.resources.files("pallas_kernels").joinpath("targets", f"{gpu}.txtpb").read_text(encoding="utf-8")


def mesh(gpu: str = "h200", num_gpus: int = 1, *, shape: tuple[int, ...] | None = None, axis_names: tuple[str, ...] = ("x",)):
    """A `jax.sharding.Mesh` of absent GPUs of one host.

    Args:
      gpu: one of `GPUS`.
      num_gpus: how many.
      shape: of the mesh; (num_gpus,) if None.
      axis_names: a name per axis of `shape`.

    Raises:
      ValueError: no such GPU, or a shape of another size.
      RuntimeError: the extra `aot` is not installed.
    """
    _check(gpu)
    shape = (num_gpus,) if shape is None else tuple(shape)
    if num_gpus < 1 or math.prod(shape) != num_gpus or len(shape) != len(axis_names):
        raise ValueError(f"{num_gpus} GPUs do not make a mesh of shape {shape} with axes {axis_names}.")
    if reason := unavailable():
        raise RuntimeError(reason)
    return jax.sharding.Mesh(np.array(_topology(gpu, num_gpus)).reshape(shape), axis_names)


def compile(
    fn: Callable,
    *args,
    gpu: str = "h200",
    mesh: jax.sharding.Mesh | None = None,
    donate_argnums: tuple[int, ...] = (),
    keywords: Mapping[str, Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    xla_kernels: bool = True,
) -> Report:
    """Compile a function for absent GPUs and report what came of it.

    On a GPU, XLA times its own matrix products (fusions) against cuBLAS' and chooses. Here it cannot, and takes its own, with tiles that
    are placeholders: what a kernel "gemm_fusion..." uses means nothing. For few rows that is the likelier choice: cuBLAS would first copy
    the weights of a single row's product to float32. compiler_options={"xla_gpu_enable_triton_gemm": False} gives cuBLAS' form.

    Args:
      fn: a function, or a jitted one, which keeps its own donated and static arguments.
      args: its arguments: pytrees of `jax.ShapeDtypeStruct` or arrays, of which only shapes and dtypes matter. They are whole on
        every device, unless a ShapeDtypeStruct has a NamedSharding (over `mesh`, or an abstract mesh with its axes).
      gpu: one of `GPUS`; one such GPU, where no mesh is given.
      mesh: of absent GPUs, from `mesh`.
      donate_argnums: arguments that the program may write over. Not for a jitted function.
      keywords: arguments that `fn` takes by name, placed like `args`.
      compiler_options: XLA's.
      xla_kernels: whether `Report.kernels` holds XLA's kernels too. For that they are assembled once more, as long as all else takes.

    Raises:
      ValueError: `donate_argnums` for a jitted function, or an unknown GPU.
      RuntimeError: the extra `aot` is not installed.
    """
    mesh = _mesh(gpu) if mesh is None else mesh
    jitted = hasattr(fn, "lower")
    if jitted and donate_argnums:
        raise ValueError("a jitted function says itself what it donates; give donate_argnums to jax.jit, or the plain function here.")
    jitted = fn if jitted else jax.jit(fn, donate_argnums=donate_argnums)
    args, keywords = jax.tree.map(functools.partial(_place, mesh), (args, dict(keywords or {})))
    with tempfile.TemporaryDirectory(prefix="aot-") as folder, jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        ours, xlas = Path(folder, "mosaic"), Path(folder, "xla")
        # The thunk sequence comes with any dump; dumps of Triton's emitter would take longer than the compilation.
        options = dict(compiler_options or {}) | {"xla_dump_to": str(xlas), "xla_dump_emitter_re": "ptx" if xla_kernels else "none"}
        with _dumping(ours), environment.nothing_cached():
            start = time.perf_counter()
            lowered = jitted.lower(*args, **keywords)
            mosaic.share(lowered)
            compiled = lowered.compile(compiler_options=options)
            seconds = time.perf_counter() - start
            found = mosaic.kernels(lowered)
            _learn(found, ours)
            if not _known.keys() >= found.keys():
                _compile_again(lowered, options, ours)
        return _report(compiled, found, xlas, seconds)


def _report(compiled: jax.stages.Compiled, found: dict[bytes, mosaic.Launch], folder: Path, seconds: float) -> Report:
    hlo = compiled.as_text()
    (sequence,) = folder.glob("*.thunk_sequence.txt")
    (metadata,) = folder.glob("*.thunk_metadata.txt")
    calls = launches.mosaic_calls(hlo)
    texts = [ptx.read_text(encoding="utf-8", errors="replace") for ptx in sorted(folder.glob("*.ptx"))]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        xlas = functools.reduce(operator.or_, pool.map(assembly.usage, texts), {})
    kernels, names = {}, []  # kernels: a dictionary for its order
    for thunk in launches.thunks(sequence.read_text(encoding="utf-8"), metadata.read_text(encoding="utf-8")):
        name = thunk.name if thunk.threads else f"{thunk.kind[1:]} {thunk.name}"
        if thunk.kind == "kCustomCall" and thunk.name in calls:
            key = calls[thunk.name]
            name = found[key].name
            kernels[_kernel(name, _known[key], found[key], pallas=True)] = None
        elif thunk.name in xlas:
            kernels[_kernel(thunk.name, xlas[thunk.name], thunk)] = None
        names.append(" / ".join([*thunk.within, name]))
    memory = compiled.memory_analysis()
    return Report(
        kernels=tuple(kernels),
        launches=tuple(names),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        seconds=seconds,
        hlo=launches.without_bytecode(hlo),
    )


def _kernel(name: str, usage: assembly.Usage, launch: mosaic.Launch | launches.Thunk, *, pallas: bool = False) -> Kernel:
    memory = usage.static_shared_memory + launch.shared_memory
    cost = (usage.registers, usage.spill_bytes, usage.stack_bytes, memory)
    return Kernel(name, *cost, launch.threads, launch.grid, usage.sass, pallas, usage.assembly)


def _learn(found: dict[bytes, mosaic.Launch], folder: Path) -> None:
    """Keep what Mosaic's dumps say of kernels."""
    for key, launch in found.items():
        ptx, log, sass = (folder / f"{launch.files}.{kind}" for kind in ("ptx", "ptxas", "sass_ctrl"))
        if key not in _known and ptx.exists():
            dumped = log.exists() and sass.exists()
            (told,) = (assembly.parse(log.read_text(), sass.read_text()) if dumped else assembly.usage(ptx.read_text())).values()
            _known[key] = assembly.examined(told, ptx.read_text(), log.read_text(), sass.read_text()) if dumped else told


def _compile_again(lowered: jax.stages.Lowered, options: dict, folder: Path) -> None:
    """Learn of kernels which this process compiled before, elsewhere, and without a dump."""
    before = mosaic.kernels(lowered)
    mosaic.rename(lowered)
    lowered.compile(compiler_options=options | {"xla_dump_to": str(folder)})
    after = mosaic.kernels(lowered)
    _learn(after, folder)
    _known.update({old: _known[new] for old, new in zip(before, after, strict=True)})


def _check(gpu: str) -> None:
    if gpu not in GPUS:
        raise ValueError(f"gpu must be one of {', '.join(GPUS)}; got {gpu!r}.")


@functools.cache
def _topology(gpu: str, num_gpus: int) -> tuple:
    with environment.variables(JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1"):  # the plugin would look for a driver
        described = topologies.get_topology_desc(platform="cuda", topology=f"1x1x{num_gpus}", target_config=target(gpu))
    return tuple(described.devices)


@functools.cache
def _mesh(gpu: str) -> jax.sharding.Mesh:
    return mesh(gpu)


def _place(mesh: jax.sharding.Mesh, leaf):
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return leaf
    sharding = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None
    spec = sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec), weak_type=weak)


def _dumping(folder: Path):
    folder.mkdir()
    kinds = dict.fromkeys(("MOSAIC_GPU_DUMP_PTX", "MOSAIC_GPU_DUMP_PTXAS", "MOSAIC_GPU_DUMP_SASS_CTRL"), "1")
    return environment.variables(MOSAIC_GPU_DUMP_TO=str(folder), **kinds)
