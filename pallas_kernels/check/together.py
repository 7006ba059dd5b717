"""The kernels of a decode step one behind the other, as a program has them: what no kernel shows that runs alone.

Launches overlap (a kernel is set up, and reads weights, while those before it still run), and their arrays are handed on. A few layers of
one set of weights, then the unembedding, are held against XLA's forms in float32. Experts are far apart, or rounding would choose others.
"""

from collections.abc import Iterable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch, projection
from pallas_kernels.attention import paged_attention
from pallas_kernels.bench import Case
from pallas_kernels.check import selection
from pallas_kernels.moe import decode
from pallas_kernels.moe.bench import tiles
from pallas_kernels.norm import add_norm
from pallas_kernels.routing import route, router

EPS, LIMIT, PAGE, H = 1e-5, 7.0, 64, 64


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a model: width, experts' width, experts, experts a token, kv heads, queries a group, vocabulary; layers, tokens in each cache."""

    D: int
    F: int
    E: int
    A: int
    K: int
    G: int
    V: int
    layers: int
    length: int


SIZES = {"20b": Size(2880, 2880, 32, 4, 8, 8, 201_088, 2, 1000), "120b": Size(2880, 2880, 128, 4, 8, 8, 201_088, 2, 1000)}
SMALL = Size(128, 64, 8, 2, 1, 8, 128, 1, 70)


def cases(preset: str, without: Iterable[str] = ()) -> list[Case]:
    """At a model's shapes, for 1 and 16 tokens; XLA's forms stand in for kernels that are left out."""
    names = {1: f"{preset}, 1 token", 16: f"{preset}, 16 tokens"}
    return [case(name, SIZES[preset], M, without) for M, name in names.items()]


def case(name: str, size: Size, M: int, without: Iterable[str] = ()) -> Case:
    """A few layers of so many tokens."""

    def run(*arguments):
        with dispatch.without(without):
            return _step(size, None, *arguments)

    def reference(rows, square_sum, x, k_pages, v_pages, weights):
        wide = lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a
        return _step(size, "xla", wide(rows), square_sum, x, k_pages, v_pages, jax.tree.map(wide, weights))

    return Case(selection.TOGETHER, name, run, reference, functools.partial(_arguments, size, M), bytes=0, flops=0)


def _step(size: Size, form, rows, square_sum, x, k_pages, v_pages, w) -> tuple[jax.Array, jax.Array]:
    """The residual stream and the logits."""
    M, form = len(x), {"implementation": form}
    positions = jnp.full(M, size.length, jnp.int32)
    blocks = size.length // PAGE + 1
    table = jnp.arange(M * blocks, dtype=jnp.int32).reshape(M, blocks)
    cos, sin = jnp.cos(w["angle"]), jnp.sin(w["angle"])
    place = (table[:, -1], positions % PAGE)
    valid, active = jnp.ones(M, bool), {"num_active": size.A}
    for _ in range(size.layers):
        q, k_pages, v_pages = projection.project_qkv(
            *(rows, square_sum, w["qkv"], w["qkv_bias"], cos, sin, k_pages, v_pages, *place), eps=EPS, early=True, **form
        )
        heads = paged_attention(
            *(q[:, None], k_pages.astype(q.dtype), v_pages.astype(q.dtype), table, positions[:, None], positions + 1, w["sinks"]),
            window=None,
            **form,
        )
        x, rows = projection.project_out(heads.reshape(M, -1), w["out"], w["bias"], x, w["gain"], early=True, **form)
        moments = router(x, w["gain"], w["router"], valid, early=True, **form)
        routing = route(moments, w["router_bias"], width=size.D, eps=EPS, **active, **form)
        h = decode.gate_up(rows, routing, w["gate_up"], w["gate_up_bias"], limit=LIMIT, **active, **form)
        terms = decode.down(h, routing, w["down"], w["down_bias"], early=True, **active, **form)
        x, rows, square_sum = add_norm(x, terms, valid, w["gain"], dtype=rows.dtype, **form)
    return x, projection.unembed(rows, square_sum, w["unembedding"], eps=EPS, early=True, **form)


def _arguments(size: Size, M: int, key):
    keys = iter(jax.random.split(key, 20))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    low = lambda scale, *shape: jax.random.normal(next(keys), shape, jnp.bfloat16) * jnp.bfloat16(scale)
    D, F, E, K, G, N = size.D, size.F, size.E, size.K, size.G, size.K * size.G
    x, gain = normal(M, D), 1 + 0.1 * normal(D)
    pages = (M * (size.length // PAGE + 1), K, PAGE, H)
    weights = {
        "angle": normal(M, H // 2),
        "qkv": low(D**-0.5, K, G + 2, H, D),
        "qkv_bias": 0.1 * normal(K, G + 2, H),
        "sinks": normal(N),
        "out": low((N * H) ** -0.5, D, N * H),
        "bias": 0.1 * normal(D),
        "gain": gain,
        "router": 0.1 * D**-0.5 * normal(E, D),
        "router_bias": 5.0 * (E - jax.random.permutation(next(keys), E)).astype(jnp.float32) / size.A,
        "gate_up": tiles(next(keys), (E, 2 * F, D), 2),
        "gate_up_bias": 0.1 * normal(E, 2 * F),
        "down": tiles(next(keys), (E, D, F), 1),
        "down_bias": 0.1 * normal(E, D),
        "unembedding": low(D**-0.5, size.V, D),
    }
    scaled = (x * gain[None, :]).astype(jnp.bfloat16)
    return scaled, jnp.sum(x * x, -1), x, low(1, *pages), low(1, *pages), weights
