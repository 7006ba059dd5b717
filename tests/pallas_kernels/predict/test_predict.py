"""The model of time, where the truth is known or simple: kernels that only stream, that only wait, that only multiply; jax's own."""

import functools
import math

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import pytest

from pallas_kernels import aot
from pallas_kernels.emulator import capture
from pallas_kernels.emulator.ptx import parse
from pallas_kernels.predict import cases, chip, sass

STAGES, TILE = 6, (64, 64)  # floats: 16 KB


def stream(x, *, blocks: int, tiles: int, stages: int = STAGES, early: bool = False):
    """Each block adds up `tiles` tiles of its own of `x` [blocks * tiles, *TILE], `stages` of them under way.

    `early`: the launch is set up before its turn, and asks for its first tiles.
    """

    def kernel(x, out, ring, arrived):
        block = jax.lax.axis_index("block")
        copy = lambda i, slot: plgpu.copy_gmem_to_smem(x.at[block * tiles + i], ring.at[slot], arrived.at[slot])
        for i in range(stages):
            copy(i, i)
        if early:
            plgpu.griddepcontrol_wait()

        def body(i, total):
            slot = jax.lax.rem(i, stages)
            plgpu.barrier_wait(arrived.at[slot])
            total = total + ring[slot]

            @pl.when(i + stages < tiles)
            def _():
                copy(i + stages, slot)

            return total

        out[block] = jax.lax.fori_loop(0, tiles, body, jnp.zeros(TILE, jnp.float32))

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((blocks, *TILE), jnp.float32),
        grid=(blocks,),
        grid_names=("block",),
        kernel_name="add_norm" if early else "stream",  # a name that is known to find room
        scratch_types=[plgpu.SMEM((stages, *TILE), jnp.float32), plgpu.Barrier(num_barriers=stages)],
    )(x)


def predicted(gpu="h200", **sizes):
    if reason := aot.unavailable():
        pytest.skip(reason)
    x = jnp.zeros((sizes["blocks"] * sizes["tiles"], *TILE), jnp.float32)
    (found,) = cases.of(functools.partial(stream, **sizes), x, gpus=(gpu,), samples=1)[gpu]
    return found


@pytest.mark.thorough
def test_a_kernel_that_only_streams_is_bound_by_memory():
    found = predicted(blocks=132, tiles=48)
    assert found.binding == "memory" and found.bytes == pytest.approx(132 * 49 * 4 * math.prod(TILE), rel=0.01)
    assert 0.7 < found.share < 1, "what is left are a launch, the first bytes and the last"
    assert found.seconds > found.floor + chip.CHIPS["h200"].launch and found.multiprocessors == 132


@pytest.mark.thorough
def test_one_block_cannot_have_the_memory_to_itself():
    one, few = predicted(blocks=1, tiles=48), predicted(blocks=132, tiles=48, stages=1)
    assert one.binding != "memory" and one.share < 0.1
    assert few.binding == "latency" and few.share < 0.5, "one tile at a time under way hides no latency"
    assert predicted(blocks=132, tiles=48, gpu="h100").floor / predicted(blocks=132, tiles=48).floor == pytest.approx(4.8 / 3.35)


@pytest.mark.thorough
def test_what_is_set_up_before_its_turn_takes_less_but_its_bytes_must_move():
    late, early = predicted(blocks=132, tiles=12), predicted(blocks=132, tiles=12, early=True)
    assert early.floor < early.seconds < late.seconds - 0.4 * chip.CHIPS["h200"].launch
    assert early.parts["launch"] < late.parts["launch"]


@pytest.mark.thorough
def test_blocks_that_wait_for_a_place_take_a_second_wave():
    one, two = predicted(blocks=132 * 2, tiles=12), predicted(blocks=132 * 2 * 3, tiles=12)
    assert two.waves == pytest.approx(3 * one.waves)
    assert 2 < (two.seconds - chip.CHIPS["h200"].launch) / (one.seconds - chip.CHIPS["h200"].launch) < 3.3


def test_tensor_cores_multiply_as_fast_as_the_data_sheet_says():
    whole = chip.wgmma_cycles(256, from_registers=False)
    flops = 2 * 64 * 256 * 16 / whole * 132 * 1.83e9
    assert flops == pytest.approx(989.4e12, rel=0.01)
    assert chip.wgmma_cycles(8, from_registers=False) > 8 / 2, "shared memory is the limit where there are few columns"


@pytest.mark.thorough
def test_each_machine_instruction_is_of_one_of_the_ptx():
    if reason := aot.unavailable():
        pytest.skip(reason)
    _, kernels = capture.capture(functools.partial(stream, blocks=1, tiles=8), jnp.zeros((8, *TILE)), launch=None)
    (compiled,) = kernels.values()
    made, code = sass.attributed(compiled.ptx), parse.parse(compiled.ptx).code
    assert len(made) == len(code)
    by = {name: sum(sum(c.values()) for i, c in zip(code, made, strict=True) if i.op[0] == name) for name in ("cp", "ld", "mbarrier")}
    assert all(by.values())
    copies = [(i, c) for i, c in zip(code, made, strict=True) if any(name.startswith("UTMALDG") or name.startswith("UBLKCP") for name in c)]
    assert copies and all(i.op[0] == "cp" for i, _ in copies)
    assert math.isclose(sum(sum(c.values()) for c in made), sum(assembled(compiled.ptx).values()), rel_tol=0.02)


def assembled(ptx: str):
    (usage,) = aot.assembly.usage(ptx).values()
    return usage.sass


@pytest.mark.thorough
def test_jaxs_own_product_takes_what_its_documentation_says():
    """docs.jax.dev, "Collective matrix multiplication": float16 [1024, 4096] by [4096, 4096] takes about 43 us on an H100."""
    if reason := aot.unavailable():
        pytest.skip(reason)
    from jax.experimental.pallas.ops.gpu import hopper_matmul_mgpu as theirs

    n = theirs.MatmulDimension.N
    config = theirs.TuningConfig(128, 128, 64, 4, grid_minor_dim=n, grid_tile_width=8, wg_dimension=n)
    a, b = jnp.zeros((1024, 4096), jnp.float16), jnp.zeros((4096, 4096), jnp.float16)
    (found,) = cases.of(lambda a, b: theirs.matmul(a, b, None, config), a, b, gpus=("h100",), samples=1)["h100"]
    assert found.seconds == pytest.approx(43e-6, rel=0.15)
