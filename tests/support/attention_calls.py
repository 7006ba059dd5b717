"""Calls of paged attention, and how near a kernel comes to float32: for the kernels' tests of decoding and of prompts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle

from pallas_kernels import hopper
from pallas_kernels.attention import paged_attention, tuning

H = PAGE = 64


def draw(*shape, seed, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def call(lengths, tokens=1, *, groups=8, kv_heads=2, entries=None, sinks=0.0, seed=0, filler=50):
    """Arguments of a call whose rows have just appended `tokens`; where nothing is written, or is written over, pages hold `filler`."""
    B, T, K, N = len(lengths), tokens, kv_heads, groups * kv_heads
    longest = max(1, *lengths)
    R = -(-longest // PAGE) if entries is None else entries
    table = np.random.default_rng(seed).permutation(B * R + 2)[: B * R].astype(np.int32).reshape(B, R)
    pages = [np.full((B * R + 2, K, PAGE, H), filler, np.float32) for _ in range(2)]
    for which, pool in enumerate(pages):
        new = draw(B, longest, K, H, seed=seed + 1 + which)
        for row, length in enumerate(lengths):
            for block in range(-(-length // PAGE)):
                part = new[row, block * PAGE : min(length, (block + 1) * PAGE)]
                pool[table[row, block % R], :, : len(part)] = part.swapaxes(0, 1)
    positions = np.array(lengths, np.int32)[:, None] - T + np.arange(T, dtype=np.int32)[None, :]
    q = draw(B, T, N, H, seed=seed + 3, scale=2)
    half = lambda x: jnp.asarray(x, jnp.bfloat16)
    sinks = draw(N, seed=seed + 4) + np.float32(sinks)
    return half(q), *(half(x) for x in pages), table, positions, np.array(lengths, np.int32), sinks


@functools.cache
def compiled(implementation, window, races, tuned):
    return jax.jit(functools.partial(paged_attention, window=window, implementation=implementation))


def run(arguments, window, implementation="mosaic", races=False):
    """The op's result in float32. What `tuning` says is part of what is cached."""
    tuned = (tuning.DECODE, tuning.DECODE_ROWS, tuning.PREFILL)
    if implementation == "xla":
        return np.asarray(compiled("xla", window, False, None)(*arguments), np.float32)
    with hopper.interpret(detect_races=races):
        return np.asarray(compiled("mosaic", window, races, tuned)(*arguments), np.float32)


def check(arguments, window, races=False, real=np.s_[:]):
    """The kernel's error to float32 is at most twice that of the plain bfloat16 form, where results are `real`; all are finite."""
    got = run(arguments, window, races=races)
    exact = run([x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in arguments], window, "xla")
    assert np.isfinite(got).all()
    assert oracle.error(got[real], exact[real]) <= 2 * oracle.error(run(arguments, window, "xla")[real], exact[real])
    return got


def alone(arguments, row):
    """The call with one of its rows only."""
    q, k_pages, v_pages, *rows, sinks = arguments
    return q[row : row + 1], k_pages, v_pages, *(x[row : row + 1] for x in rows), sinks
