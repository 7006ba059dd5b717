"""jax's own Hopper kernels, which run on H100s: in the emulator they are right too, and break no rule."""

import functools
from types import SimpleNamespace

import jax
from jax.experimental.pallas.ops.gpu import attention_mgpu, hopper_matmul_mgpu, hopper_mixed_type_matmul_mgpu, ragged_dot_mgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot
from pallas_kernels.bench.small import Small
from pallas_kernels.emulator import examine

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))]

# They ask the process for the version of CUDA, and for the device's number of multiprocessors.
CUDA = (attention_mgpu, "cuda_versions", SimpleNamespace(cuda_runtime_get_version=lambda: 13000))
DEVICE = (hopper_mixed_type_matmul_mgpu, "backend", SimpleNamespace(get_default_device=lambda: SimpleNamespace(core_count=132)))


def draw(seed, *shape, dtype=jnp.bfloat16):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def case(op, name, arguments, run, xla, *tables) -> Small:
    """`xla` is also the reference: of its arguments in float32."""
    wide = lambda *args: xla(*(a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in args))
    return Small(op, name, 0, run, xla, wide, lambda: arguments, tables)


def matmul(name, M, K, N, dtype=jnp.bfloat16, **tuning):
    config = hopper_matmul_mgpu.TuningConfig(max_concurrent_steps=2, **tuning)
    run = lambda a, b: hopper_matmul_mgpu.matmul(a, b, None, config)
    return case("matmul", name, (draw(0, M, K, dtype=dtype), draw(1, K, N, dtype=dtype)), run, jnp.matmul)


def attention(name, T, N, form=attention_mgpu.attention, H=64, block_kv=64, **tuning):
    config = attention_mgpu.TuningConfig(block_q=64, block_kv=block_kv, max_concurrent_steps=2, **tuning)
    arguments = tuple(draw(i, 1, t, n, H, dtype=jnp.float16) for i, (t, n) in enumerate(((T, N), (256, 1), (256, 1))))
    xla = lambda q, k, v: attention_mgpu.attention_reference(q, k, v, causal=tuning.get("causal", False)).astype(q.dtype)
    return case("attention", name, arguments, lambda q, k, v: form(q, k, v, config, save_residuals=False), xla, CUDA)


def ragged(name, sizes, transposed):
    K, N, G = 64, 128, len(sizes)
    tuning = {"block_m": 64, "block_n": 64, "block_k": 64, "max_concurrent_steps": 2, "grid_block_n": 1}
    run = lambda x, w, sizes: ragged_dot_mgpu.ragged_dot(x, w, group_sizes=sizes, transpose_rhs=transposed, **tuning)
    xla = lambda x, w, sizes: jax.lax.ragged_dot(x, w.swapaxes(1, 2) if transposed else w, sizes)
    w = draw(1, G, *((N, K) if transposed else (K, N)), dtype=jnp.float16)
    return case("ragged_dot", name, (draw(0, sum(sizes), K, dtype=jnp.float16), w, np.array(sizes, np.int32)), run, xla)


def mixed(name):
    config = hopper_mixed_type_matmul_mgpu.TuningConfig(tile_m=64, tile_n=64, tile_k=64, max_concurrent_steps=2)
    run = functools.partial(hopper_mixed_type_matmul_mgpu.mixed_matmul_kernel, out_dtype=jnp.bfloat16, config=config)
    arguments = np.random.default_rng(0).integers(-8, 8, (128, 128)).astype(np.int8), draw(1, 128, 128)
    return case("mixed_matmul", name, arguments, run, lambda a, b: jnp.matmul(a.astype(b.dtype), b), DEVICE)


M_, N_ = hopper_matmul_mgpu.MatmulDimension.M, hopper_matmul_mgpu.MatmulDimension.N
CASES = [
    matmul("256 x 192 x 256", 256, 192, 256, tile_m=64, tile_n=64, tile_k=64),
    matmul("float16, warpgroups along M", 256, 128, 128, jnp.float16, tile_m=64, tile_n=128, tile_k=64, wg_dimension=M_),
    matmul("a cluster along N", 256, 128, 512, tile_m=64, tile_n=64, tile_k=32, cluster_dimension=N_),
    matmul("a cluster along M", 256, 128, 256, tile_m=64, tile_n=64, tile_k=64, cluster_dimension=M_),
    attention("2 heads", 256, 2),
    attention("causal", 256, 1, causal=True),
    attention("128 wide, no schedule barrier", 128, 1, H=128, block_kv=128, use_schedule_barrier=False),
    attention("by the pipeline's emitter", 256, 1, attention_mgpu.attention_with_pipeline_emitter),
    ragged("70, 0, 58, 64", (70, 0, 58, 64), False),
    ragged("70, 0, 58, 64, transposed", (70, 0, 58, 64), True),
    mixed("int8 by bfloat16"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}, {case.name}")
def test_they_are_right(case):
    outcome = examine.examine(case, examine.schedules(2))
    assert outcome.right, outcome
    assert all(launch.instructions for launch in outcome.launches)
