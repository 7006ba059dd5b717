"""What kernel bodies need of Mosaic GPU beyond its public API.

A kernel body is the same for a GPU and for the interpreter on a CPU. Where the interpreter lacks a primitive (layouts, wgmma
with its left operand in registers, inline PTX), a function here stands in for it.
"""

import jax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

from pallas_kernels.hopper import interpreting

ROW = plgpu.Layout.WGMMA.reduce(1)  # one value per row of an accumulator


def begin(*, next_waits: bool = False) -> None:
    """Lets the launch after this one be set up, and waits for the one before, whose results can be read from here on.

    Kernels that call this are on the multiprocessors before their turn (programmatic dependent launch; PTX ISA, griddepcontrol), as soon as
    every block of the launch before has begun; the one before that may still run. Until here a kernel writes nothing, and reads only what
    no launch writes, such as weights that are a program's arguments. Since every launch waits here, those before one that is complete are
    complete. Where `next_waits`, the next launch is set up only once all blocks were here: it may read early what the launch before this
    one wrote.
    """
    if interpreting():
        return
    if not next_waits:
        plgpu.griddepcontrol_launch_dependents()
    plgpu.griddepcontrol_wait()
    if next_waits:
        plgpu.griddepcontrol_launch_dependents()


def swizzled(columns: int, dtype) -> tuple:
    """Transforms of a shared-memory tile [multiple of 8, columns] that wgmma reads and TMA fills."""
    width = columns * jnp.dtype(dtype).itemsize
    swizzle = next(s for s in (128, 64, 32) if width % s == 0)
    return (plgpu.TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(swizzle))


def leading(count: int):  # a slice
    """The first `count` items of an array in global memory that may have fewer; for use within a kernel.

    TMA reads zeros past an array's end and writes nothing there. jax 0.12 refuses slices that reach past the end where it knows their
    start, as that of pl.ds(0, count). This one starts at a sum, which is traced, and which the compiler knows to be 0.
    """
    zero = jnp.int32(0)
    return pl.ds(zero + zero, count)


def layout_cast(x, layout):
    """`x` in the given register layout."""
    return x if interpreting() else plgpu.layout_cast(x, layout)


def iota(shape: tuple[int, ...], dimension: int, layout=plgpu.Layout.WGMMA):
    """int32 indices along a dimension, in a register layout."""
    if interpreting():
        return jax.lax.broadcasted_iota(jnp.int32, shape, dimension)
    return plgpu.broadcasted_iota(jnp.int32, shape, dimension, layout=layout)


def load(ref, layout, *, optimized: bool = True):
    """What a ref in global or shared memory holds, in a register layout."""
    return ref[...] if interpreting() else plgpu.load(ref, layout=layout, optimized=optimized)


def store(ref, value, *, optimized: bool = True) -> None:
    """ref[...] = value. Where banks of shared memory conflict, jax 0.12 refuses it unless it is not to be optimized; 0.11 never minds."""
    if optimized or interpreting() or not hasattr(plgpu, "store"):
        ref[...] = value
    else:
        plgpu.store(ref, value, optimized=False)


def wgmma_from_registers(accumulator, a, b, staging) -> None:
    """accumulator += a @ b with a [64, k] in registers. `staging` is shared memory like `a`, used by the interpreter only."""
    if not interpreting():
        plgpu.wgmma(accumulator, a, b)
        return
    staging[...] = a
    plgpu.wgmma(accumulator, staging, b)


def staging(shape: tuple[int, ...], dtype=jnp.bfloat16) -> list:
    """Scratch for `wgmma_from_registers`: shared memory in the interpreter, nothing on a GPU. Append it to scratch_types."""
    return [plgpu.SMEM(shape, dtype)] if interpreting() else []


def plus_product(c, a, b, staging):
    """c + a @ b: c [64n, columns] and a [64n, k] in registers, b in shared memory. `staging` is what `hopper.staging` became."""
    if not interpreting():
        return pl.run_state(lambda accumulator: plgpu.wgmma(accumulator, a, b))(plgpu.ACC.init(c))
    staging[0][...] = a

    def multiply(accumulator):
        plgpu.wgmma(accumulator, staging[0], b)
        return accumulator[...]

    return c + pl.run_scoped(multiply, plgpu.ACC(c.shape, c.dtype))


def clear_rows(ref, first) -> None:
    """Zeros in rows `first` ... 63 of a tile [64, 64] of 16-bit values in shared memory, `swizzled`; wgmma may read it after `commit_smem`.

    A swizzle moves nothing out of its row, which is 128 bytes in a piece: two threads write one. Loaded, chosen from and stored, the tile
    would take registers that a block's neighbours want.
    """
    if interpreting():
        ref[...] = jnp.where(iota(ref.shape, 0) < first, ref[...], jnp.zeros(ref.shape, ref.dtype))
    else:
        _clear_rows(ref.dtype)(ref, first)


def _clear_rows(dtype):
    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(swizzled(64, dtype)), plgpu.Layout.WG_SPLAT))
    def clear(_, ref, first):
        i32 = ir.IntegerType.get_signless(32)
        constant = lambda value: mgpu.c(value, i32)
        thread = arith.remui(mgpu.thread_idx(), constant(128))
        at = mgpu.utils.getelementptr(mgpu.utils.memref_ptr(ref), [arith.muli(thread, constant(16))], i32)
        operands = [
            llvm.ptrtoint(i32, at),
            arith.shrui(thread, constant(1)),
            first.registers.flat[0],
            constant(0),
        ]
        # A branch would leave it to ptxas where the threads of a warp meet again.
        stores = " ".join(f"@clear st.shared.v4.b32 [$0+{16 * i}], {{$3, $3, $3, $3}};" for i in range(4))
        code = f"{{ .reg .pred clear; setp.ge.s32 clear, $1, $2; {stores} }}"
        llvm.inline_asm(ir.Type.parse("!llvm.void"), operands, code, "r,r,r,r,~{memory}", has_side_effects=True)

    return clear


def meeting_place(axes: tuple[str, ...], warpgroups: int) -> list:
    """Scratch for `meet`: a barrier of the cluster in the interpreter, nothing on a GPU. Append it to scratch_types."""
    return [plgpu.ClusterBarrier(collective_axes=axes, num_arrivals=warpgroups)] if interpreting() else []


def meet(place) -> None:
    """Waits for all threads of the cluster that have not ended; what they wrote before, in global memory too, can be read after it."""
    if interpreting():
        plgpu.barrier_arrive(place[0])
        plgpu.barrier_wait(place[0])
    else:
        _cluster_barrier()


def leave(place) -> None:
    """What a warpgroup does that ends instead of `meet`. A GPU's barrier does not wait for threads that have ended."""
    if interpreting():
        plgpu.barrier_arrive(place[0])


def _cluster_barrier() -> None:
    """Unlike plgpu.ClusterBarrier, whose arrivals order the memory of their own block only, this releases and acquires the cluster's."""

    @plgpu.inline_mgpu()
    def barrier(_):
        code = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
        llvm.inline_asm(ir.Type.parse("!llvm.void"), [], code, "~{memory}", has_side_effects=True, convergent=True)

    barrier()
