"""The offline compiler's report: what it says of kernels, launches and bytes, where the truth is known."""

import functools
import os
from pathlib import Path
import tempfile

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, hopper
from pallas_kernels.aot import assembly, launches

K, N = 64, 256


def products(x, ws, *, keep: int):
    """x [64, K] @ each of `ws` [K, N], with the accumulators of `keep` of them in registers at once: 128 each of the 255 there are."""
    swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    def kernel(x, ws, out, x_tile, tiles, arrived):
        plgpu.copy_gmem_to_smem(x, x_tile, arrived)
        plgpu.copy_gmem_to_smem(ws, tiles, arrived)
        plgpu.barrier_wait(arrived)

        def one(i):
            def body(total):
                plgpu.wgmma(total, x_tile, tiles.at[i])
                plgpu.wgmma_wait(0)
                return total[...]

            return pl.run_scoped(body, plgpu.ACC((64, N), jnp.float32))

        totals = [one(i) for i in range(keep)]
        for i, total in enumerate(totals):
            out[i] = total * totals[-1]

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((keep, 64, N), jnp.float32),
        grid=(1,),
        grid_names=("block",),
        kernel_name=f"products_{keep}",
        scratch_types=[
            plgpu.SMEM((64, K), jnp.bfloat16, transforms=swizzled),
            plgpu.SMEM((keep, K, N), jnp.bfloat16, transforms=swizzled),
            plgpu.Barrier(num_arrivals=2),
        ],
    )(x, ws)


def arguments(keep):
    return jax.ShapeDtypeStruct((64, K), jnp.bfloat16), jax.ShapeDtypeStruct((keep, K, N), jnp.bfloat16)


@pytest.mark.parametrize("gpu", aot.GPUS)
def test_a_pallas_kernel(compile_for_hopper, gpu):
    report = compile_for_hopper(functools.partial(products, keep=1), *arguments(1), gpu=gpu)
    (kernel,) = report.kernels
    assert report.launches == (kernel.name,) == ("products_1",) and report.pallas_kernels == report.kernels
    assert kernel.wgmma == K // 16 and kernel.sass["HGMMA"] == kernel.wgmma
    assert 128 < kernel.registers <= 255 and kernel.spill_bytes == kernel.stack_bytes == 0
    assert kernel.threads == 128 and kernel.grid == (1, 1, 1)
    tiles = 2 * (64 * K + K * N)
    assert tiles <= kernel.shared_memory < tiles + 2048
    assert kernel.ctas_per_sm == min(65536 // (8 * -(-kernel.registers // 8)) // 128, 233472 // (tiles + 1024 + 128))
    assert kernel.instructions > 100 and 0 < report.seconds < 30
    assert report.argument_bytes == tiles and report.output_bytes == 4 * 64 * N and not report.alias_bytes
    assert "mosaic_gpu_v2" in report.hlo and len(report.hlo) < 20_000


@pytest.mark.thorough
def test_spills_are_seen(compile_for_hopper):
    (kernel,) = compile_for_hopper(functools.partial(products, keep=3), *arguments(3)).kernels
    assert kernel.registers == 255 and kernel.spill_bytes > 1000 and kernel.stack_bytes > 100


@pytest.mark.thorough
def test_a_kernel_compiled_before_is_reported_again(compile_for_hopper):
    fn = jax.jit(lambda x, ws: products(x, ws, keep=1) + 1)
    mesh = aot.mesh()
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for a in arguments(1)]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        fn.lower(*placed).compile()  # Mosaic knows the kernel now, and will not dump it
    reports = [compile_for_hopper(fn, *placed, mesh=mesh) for _ in range(2)]
    assert reports[0].kernels == reports[1].kernels and reports[0].kernels[0].wgmma == K // 16
    assert [name for name in reports[0].launches] == ["products_1", reports[0].kernels[1].name]
    assert not reports[0].kernels[1].pallas and reports[0].kernels[1].registers > 0
    quick = compile_for_hopper(fn, *placed, mesh=mesh, xla_kernels=False)
    assert quick.launches == reports[0].launches and quick.kernels == reports[0].pallas_kernels == reports[0].kernels[:1]


@pytest.mark.thorough
def test_launches_of_loops_and_branches_are_told_apart(compile_for_hopper):
    def program(x, w, n):
        def body(i, x):
            x = jax.lax.cond(x[0, 0] > 0, lambda x: jnp.sin(x @ w), lambda x: x * 2, x)
            return jax.lax.while_loop(lambda x: x[0, 0] < 5, lambda x: x + x[0, 1], x)

        return jax.lax.fori_loop(0, n, body, x @ w)

    square = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    options = {"xla_gpu_enable_triton_gemm": False}
    found = compile_for_hopper(program, square, square, jax.ShapeDtypeStruct((), jnp.int32), compiler_options=options).launches
    inner = [name.split(" / ") for name in found if " / " in name]
    assert all(place.startswith("while") for place, *_ in inner)
    assert {place.split(" ")[-1] for name in inner for place in name[:-1]} == {"condition", "body", "false_branch", "true_branch"}
    assert max(map(len, inner)) == 3
    products = [name for name in found if "CublasLtMatmul" in name]
    assert len(products) == 2 and products[0].startswith("CublasLtMatmul") and "_branch / CublasLtMatmul" in products[1]


def test_donation_and_bytes(compile_for_hopper):
    cache, new = jax.ShapeDtypeStruct((100, 64), jnp.float32), np.zeros((1, 64), np.float32)
    write = lambda cache, new: (cache.at[3].set(new[0]), jnp.sum(new))
    kept = compile_for_hopper(write, cache, new)
    given = compile_for_hopper(write, cache, new, donate_argnums=(0,))
    jitted = compile_for_hopper(jax.jit(write, donate_argnums=0), cache, new)
    assert kept.alias_bytes == 0 and given.alias_bytes == jitted.alias_bytes == 100 * 64 * 4
    assert len(kept.launches) == len(given.launches) + 1 and kept.launches[0].startswith("Copy")  # of the whole cache
    assert kept.output_bytes == given.output_bytes >= 100 * 64 * 4 and kept.argument_bytes == 101 * 64 * 4
    with pytest.raises(ValueError, match="jitted"):
        compile_for_hopper(jax.jit(write), cache, new, donate_argnums=(0,))


def test_keywords_and_a_mesh_of_eight(compile_for_hopper):
    mesh = aot.mesh("h100", 8, shape=(2, 4), axis_names=("data", "model"))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "model"))
    x = jax.ShapeDtypeStruct((16, 256), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((256, 128), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model")))
    report = compile_for_hopper(lambda x, *, w: x @ w, x, keywords={"w": w}, mesh=mesh)
    assert report.argument_bytes == 4 * (8 * 64 + 64 * 128) and any("AllReduce" in n or "Collective" in n for n in report.launches)


@pytest.mark.thorough
def test_what_is_left_behind(compile_for_hopper, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", "mine")
    before = dict(os.environ)
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    compile_for_hopper(functools.partial(products, keep=1), *arguments(1))
    assert dict(os.environ) == before and not list(tmp_path.iterdir()) and not Path("mine").exists()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == least < 1e9


def test_what_is_refused(compile_for_hopper):
    with pytest.raises(ValueError, match="h100, h200; got 'a100'"):
        aot.mesh("a100")
    with pytest.raises(ValueError, match="shape"):
        aot.mesh(num_gpus=8, shape=(2, 2), axis_names=("x", "y"))


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(assembly, "tool", lambda name: None)
    assert "pip install 'gptoss-jax[aot]' (missing: ptxas, nvdisasm)" in aot.unavailable()
    with pytest.raises(RuntimeError, match="gptoss-jax\\[aot\\]"):
        aot.mesh()


def test_with_another_jax(monkeypatch):
    monkeypatch.setattr(hopper, "unsupported", lambda: "this is jax 0.13.0")
    assert "pip install 'gptoss-jax[aot]' (this is jax 0.13.0)." in aot.unavailable()


def test_without_the_plugin(monkeypatch):
    def topology(*args):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(assembly, "tool", lambda name: name)
    monkeypatch.setattr(aot, "_topology", topology)
    assert "gptoss-jax[aot]" in aot.unavailable() and "not implemented for cuda" in aot.unavailable()


@pytest.mark.parametrize(
    "registers, threads, shared_memory, ctas",
    [(32, 128, 0, 16), (128, 128, 0, 4), (168, 384, 200_000, 1), (168, 128, 0, 3), (255, 128, 0, 2), (16, 1024, 0, 2), (32, 128, 75_776, 3)]
    + [(32, 128, 232_448, 1), (255, 384, 0, 0), (16, 32, 0, 16)],
)
def test_blocks_of_a_multiprocessor(registers, threads, shared_memory, ctas):
    assert aot.ctas_per_sm(registers, threads, shared_memory) == ctas


def test_thunks_of_a_text():
    sequence = """\
001: kWhile        [source        | next=002 (1)]   
condition:
    002: kCustomKernel [source | sink] compare grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
  body:
    003: kWhile        [source        | next=005 (1)]   
condition:
        004: kCopy         [source        | sink        ] kCopy
      body:
        005: kCustomKernel [source | sink] add grid: [2, 3, 1] threads: [64, 2, 1]  shared_memory: 48 bytes
    006: kAsyncStart   [source | sink] stream=computation_stream[0], async_id=12
        007: kCopy [source | sink] kCopy
008: kCommandBuffer [source | sink] 
    009: kMemzero [source | sink] kMemzero
"""  # noqa: W291
    names = {1: "outer", 3: "inner", 4: "copy.1", 6: "slice.2", 9: "zero"}
    metadata = "".join(f'thunk_metadata {{ thunk_info {{ profile_annotation: "{n}"\n thunk_id: {i}\n }} }}\n' for i, n in names.items())
    found = launches.thunks(sequence, metadata)
    assert [(t.name, t.within) for t in found] == [
        ("compare", ("outer condition",)),
        ("copy.1", ("outer body", "inner condition")),
        ("add", ("outer body", "inner body")),
        ("slice.2", ("outer body",)),
        ("zero", ()),
    ]
    assert found[2].grid == (2, 3, 1) and found[2].threads == 128 and found[2].shared_memory == 48


def test_a_kernel_whose_operand_xla_slices_on_the_way_is_found():
    """Its call stands in a computation of its own, and the program launches a fusion."""
    call = 'custom-call(%p0), custom_call_target="mosaic_gpu_v2", backend_config={kernel_hash = "a\\41"}'
    lines = (
        "%dynamic-slice-fusion (p0: f32[32,64]) -> f32[4] {",
        f"  ROOT %mpmd_map.8 = f32[4]{{0}} {call}",
        "}",
        "ENTRY %main.1 (p: f32[32,64]) -> f32[4] {",
        f"  %mpmd_map.2 = f32[4]{{0}} {call}",
        "  %other = f32[4]{0} fusion(%p), kind=kLoop, calls=%fused_computation",
        "  ROOT %dynamic_slice_fusion.1 = f32[4]{0} fusion(%p), kind=kCustom, calls=%dynamic-slice-fusion, metadata={}",
        "}",
    )
    assert launches.mosaic_calls("\n".join(lines)) == dict.fromkeys(("mpmd_map.8", "mpmd_map.2", "dynamic_slice_fusion.1"), b"aA")
