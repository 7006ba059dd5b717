"""Queries, keys and values as one Hopper kernel: the product, its scale and bias, RoPE, and the new rows of the paged cache.

A block computes a few groups of 8 rotating pairs of a head, a group being rows i .. i + 7 and i + 32 .. i + 39 of the head: both
members of a pair are in one thread's registers. Groups are numbered through all heads, and a block's may lie in different ones.
"""

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.projection import mosaic
from pallas_kernels.projection.stream import HEIGHT, Stream
from pallas_kernels.projection.tuning import tuning

H = 64  # width of a head
PAIRS = 8  # of a group
GROUPS = H // 2 // PAIRS  # of a head
ROW = 128  # bytes, from which TMA starts


def covers(x, w, k_pages) -> str | None:
    """Why the kernel does not cover a call; None where it does."""
    if w.shape[2] != H:
        return f"heads must be {H} wide, not {w.shape[2]}"
    if k_pages.dtype != jnp.bfloat16:
        return f"pages must be bfloat16, not {k_pages.dtype.name}"
    return mosaic.covers(x, w)


def project_qkv(x, square_sum, w, bias, cos, sin, k_pages, v_pages, page, offset, *, eps, early):
    M, D = x.shape
    K, kinds, _, _ = w.shape
    P, _, size, _ = k_pages.shape
    x, cos, sin = mosaic.whole(x, w.dtype), mosaic.whole(cos), mosaic.whole(sin)
    row = tuning("project_qkv", M, D)
    count = row.tile // (2 * PAIRS)
    stream = Stream(x.shape[0], D, row, boxes=2 * count)
    total = K * kinds * GROUPS
    halves = (2, GROUPS, PAIRS)  # how a head's width is seen: half, group, pair

    def kernel(x, square_sum, w, bias, cos, sin, page, offset, k_pages, v_pages, q, *scratch):
        q_s, kv_s, cos_s, sin_s, sum_s, page_s, offset_s, ready, *streamed = scratch
        groups = [jax.lax.axis_index("tile") * count + i for i in range(count)]
        firsts = [jax.lax.div(g, GROUPS) * H + jax.lax.rem(g, GROUPS) * PAIRS + half * (H // 2) for g in groups for half in range(2)]
        rows = primitives.leading(stream.tall)
        stream.start(x, w, firsts, *streamed, early=early)
        for source, target in ((square_sum, sum_s), (page, page_s), (offset, offset_s)):
            plgpu.copy_gmem_to_smem(source.at[rows], target.at[rows], ready)
        for i, g in enumerate(groups):
            pairs = pl.ds(jax.lax.rem(g, GROUPS) * PAIRS, PAIRS)
            plgpu.copy_gmem_to_smem(cos.at[rows, pairs], cos_s.at[i, rows], ready)
            plgpu.copy_gmem_to_smem(sin.at[rows, pairs], sin_s.at[i, rows], ready)
        inside = [jnp.minimum(first, total * 2 * PAIRS - PAIRS) for first in firsts]  # the last block may have groups that do not exist
        biases = [primitives.load(bias.at[pl.ds(first, PAIRS)], mosaic.COLUMN, optimized=False) for first in inside]
        product = stream.product(x, w, firsts, *streamed)
        plgpu.barrier_wait(ready)
        product = product * mosaic.row_scale(sum_s, row.tile, D, eps)
        for i, g in enumerate(groups):
            below = lambda values: jax.lax.broadcast_in_dim(values, (HEIGHT, PAIRS), [1])
            a, b = (product[:, n * PAIRS : (n + 1) * PAIRS] + below(biases[n]) for n in (2 * i, 2 * i + 1))
            c, s = (primitives.load(table.at[i], plgpu.Layout.WGMMA, optimized=False) for table in (cos_s, sin_s))
            value = jnp.broadcast_to(jax.lax.rem(jax.lax.div(g, GROUPS), kinds) == kinds - 1, (HEIGHT, PAIRS))
            turned = a * c - b * s, b * c + a * s
            for half, (straight, bent) in enumerate(zip((a, b), turned, strict=True)):
                result = jnp.where(value, straight, bent).astype(jnp.bfloat16)
                q_s[i, half] = result
                primitives.store(kv_s.at[i, :, half], result, optimized=False)
        plgpu.commit_smem()
        for i, g in enumerate(groups):
            _store_queries(g, kinds, total, rows, q, q_s.at[i])
            for pages, kind in ((k_pages, kinds - 2), (v_pages, kinds - 1)):
                line = lambda m, k: (page_s[m] * K + k) * size + offset_s[m]
                _store_new(g, kinds, total, kind, M, lambda m: page_s[m] < P, line, pages, kv_s.at[i])
        plgpu.wait_smem_to_gmem(0)

    launch = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((x.shape[0], K * (kinds - 2), *halves), jnp.bfloat16),
        grid=(-(-total // count),),
        grid_names=("tile",),
        scratch_types=[
            plgpu.SMEM((count, 2, HEIGHT, PAIRS), jnp.bfloat16),
            plgpu.SMEM((count, HEIGHT, ROW // 2 // PAIRS, PAIRS), jnp.bfloat16),
            plgpu.SMEM((count, HEIGHT, PAIRS), jnp.float32),
            plgpu.SMEM((count, HEIGHT, PAIRS), jnp.float32),
            plgpu.SMEM((HEIGHT,), jnp.float32),
            plgpu.SMEM((HEIGHT,), jnp.int32),
            plgpu.SMEM((HEIGHT,), jnp.int32),
            plgpu.Barrier(num_arrivals=3 + 2 * count),
            *stream.scratch(),
        ],
        kernel_name="project_qkv",
    )
    # Of rank 4, or Mosaic would tell TMA of an array whose rows overlap.
    k_ref, v_ref = (jax.new_ref(pages.reshape(-1, *halves)) for pages in (k_pages, v_pages))
    q = launch(x, square_sum, w.reshape(-1, D), bias.reshape(-1), cos, sin, page, offset, k_ref, v_ref)
    return q[:M].reshape(M, -1, H), jax.freeze(k_ref).reshape(k_pages.shape), jax.freeze(v_ref).reshape(v_pages.shape)


def _place(g, kinds):
    """Of group `g`: kv head, kind of head, group within it."""
    head = jax.lax.div(g, GROUPS)
    return jax.lax.div(head, kinds), jax.lax.rem(head, kinds), jax.lax.rem(g, GROUPS)


def _store_queries(g, kinds, total, rows, q, q_s):
    """Writes group `g` of all rows to q [M, heads, 2, 4, 8], if it is one of queries."""
    k, kind, group = _place(g, kinds)

    @pl.when(jnp.logical_and(g < total, kind < kinds - 2))
    def _():
        for half in range(2):
            plgpu.copy_smem_to_gmem(q_s.at[half, rows], q.at[rows, k * (kinds - 2) + kind, half, group])


def _store_new(g, kinds, total, its, M, is_valid, line, pages, kv_s):
    """Writes group `g` of each valid token to its line (token, kv head -> line) of pages [lines, 2, 4, 8], if it is one of kind `its`."""
    k, kind, group = _place(g, kinds)

    @pl.when(jnp.logical_and(g < total, kind == its))
    def _():
        @pl.loop(0, M)
        def _(m):
            @pl.when(is_valid(m))
            def _():
                plgpu.copy_smem_to_gmem(kv_s.at[m, pl.ds(0, 2)], pages.at[line(m, k), :, group])
