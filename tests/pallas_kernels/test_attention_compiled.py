"""The kernels of attention at gpt-oss' shapes, compiled for a Hopper: one launch, no spills, tensor cores, as many blocks as planned."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention import mosaic_prefill, paged_attention, tuning

N, K, H, PAGE = 64, 8, 64, 64


def compiled(compile_for_hopper, B, T, context, window):
    """The report on one call, and its only kernel."""
    blocks = -(-context // PAGE) if window is None else -(-(window - 1 + max(T, 512)) // PAGE) + 1
    half, whole = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.bfloat16, jnp.int32))
    pages = half((B * blocks, K, PAGE, H))
    arguments = half((B, T, N, H)), pages, pages, whole((B, blocks)), whole((B, T)), whole((B,)), jax.ShapeDtypeStruct((N,), jnp.float32)
    report = compile_for_hopper(functools.partial(paged_attention, window=window), *arguments)
    (kernel,) = report.pallas_kernels
    assert report.launches == (kernel.name,), "one launch, no copy"
    assert kernel.spill_bytes == kernel.stack_bytes == 0 and kernel.wgmma
    return report, kernel


@pytest.mark.quick("1-1-1024-None")
@pytest.mark.parametrize(
    "B, T, context, window", [(1, 1, 1024, None), (16, 1, 8192, None), (64, 1, 131_072, None), (64, 1, 8192, 128), (4, 5, 8192, None)]
)
def test_decode(compile_for_hopper, B, T, context, window):
    report, kernel = compiled(compile_for_hopper, B, T, context, window)
    row = tuning.decode(context if window is None else window)
    assert kernel.name == "attention_decode" and kernel.ctas_per_sm >= row.ctas
    assert kernel.grid == (row.splits, K, B)
    results = B * K * row.splits * row.warpgroups * (8 * T * H + 64) * 4 if row.splits > 1 else 0  # each part's, in float32
    assert report.temporary_bytes <= results + 2048


@pytest.mark.thorough
@pytest.mark.parametrize("T, context, window", [(512, 8192, None), (2048, 131_072, None), (8192, 8192, None), (512, 8192, 128)])
def test_prefill(compile_for_hopper, T, context, window):
    report, kernel = compiled(compile_for_hopper, 1, T, context, window)
    assert kernel.name == "attention_prefill" and kernel.ctas_per_sm >= tuning.PREFILL.ctas
    asked = mosaic_prefill.FETCHING + mosaic_prefill.WORKERS * mosaic_prefill.MULTIPLYING
    assert asked <= (mosaic_prefill.WORKERS + 1) * kernel.registers, "a warpgroup would wait for registers for ever"
    assert report.temporary_bytes <= 2048
