"""Small legal calls of every kernel, each a `bench.Case`, for Mosaic's interpreter: what the rehearsal of a check runs."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import projection
from pallas_kernels.attention import paged_attention
from pallas_kernels.attention import reference as attention_reference
from pallas_kernels.bench import Case
from pallas_kernels.moe import decode, mosaic, reference_decode
from pallas_kernels.moe import reference as moe_reference
from pallas_kernels.moe.bench import tiles
from pallas_kernels.norm import add_norm
from pallas_kernels.norm import reference as norm_reference
from pallas_kernels.projection import reference as projection_reference
from pallas_kernels.routing import of_experts, route
from pallas_kernels.routing import reference as routing_reference
from pallas_kernels.routing.reference import columns

D, F, E, A, H, PAGE = 64, 64, 8, 2, 64, 64
EPS, LIMIT = 1e-5, 7.0
_kernel = functools.partial(functools.partial, implementation="mosaic")


def case(kernel: str) -> Case:
    """A kernel's small call."""
    run, reference, arguments = {
        "project_qkv": (_kernel(projection.project_qkv, eps=EPS), _wide(projection_reference.project_qkv, 1, eps=EPS), _qkv),
        "project_out": (_kernel(projection.project_out), _wide(projection_reference.project_out), _out),
        "unembed": (_kernel(projection.unembed, eps=EPS), _wide(projection_reference.unembed, eps=EPS), _unembed),
        "attention_decode": (_kernel(paged_attention, window=None), _attention_exact, functools.partial(_attention, 1)),
        "attention_prefill": (_kernel(paged_attention, window=None), _attention_exact, functools.partial(_attention, 20)),
        "route": (_tables(_kernel(route)), _tables(routing_reference.route), _moments),
        "moe_gate_up": (
            _kernel(decode.gate_up, num_active=A, limit=LIMIT),
            _wide(reference_decode.gate_up, num_active=A, limit=LIMIT),
            _gate_up,
        ),
        "moe_down": (_kernel(decode.down, num_active=A), _wide(reference_decode.down, num_active=A), _down),
        "moe_grouped": (
            functools.partial(mosaic.many, limit=LIMIT),
            functools.partial(moe_reference.moe, limit=LIMIT, dtype=jnp.float32),
            _grouped,
        ),
        "add_norm": (_kernel(add_norm), functools.partial(norm_reference.add_norm, dtype=jnp.float32), _terms),
    }[kernel]
    return Case(kernel, "small", run, reference, arguments, bytes=0, flops=0)


def _wide(op, of: int | None = None, **options):
    """The op with its bfloat16 operands in float32: all, or as many as `of` and the matrix; a cache stays as it is."""

    def run(*arguments):
        widen = lambda a: a.astype(jnp.float32) if isinstance(a, jax.Array) and a.dtype == jnp.bfloat16 else a
        few = len(arguments) if of is None else 3
        return op(*map(widen, arguments[:few]), *arguments[few:], **options)

    return run


def _draws(key, count: int):
    return [functools.partial(jax.random.normal, k) for k in jax.random.split(key, count)]


def _low(draw, *shape) -> jax.Array:
    return draw(shape, jnp.bfloat16)


def _qkv(key, M: int = 2):
    x, w, bias, angle, k, v = _draws(key, 6)
    rows, angles = _low(x, M, D), angle((M, H // 2))
    pages = [_low(draw, 4, 1, PAGE, H) for draw in (k, v)]
    place = jnp.arange(M, dtype=jnp.int32)
    weights = _low(w, 1, 4, H, D) * jnp.bfloat16(0.1)
    return rows, _squares(rows), weights, bias((1, 4, H)), jnp.cos(angles), jnp.sin(angles), *pages, place, place % PAGE


def _out(key, M: int = 2):
    x, w, bias, residual, gain = _draws(key, 5)
    return _low(x, M, 2 * H), _low(w, D, 2 * H) * jnp.bfloat16(0.1), bias((D,)), residual((M, D)), gain((D,))


def _unembed(key, M: int = 2):
    x, w = _draws(key, 2)
    rows = _low(x, M, D)
    return rows, _squares(rows), _low(w, 2 * H, D) * jnp.bfloat16(0.1)


def _squares(rows) -> jax.Array:
    return jnp.sum(rows.astype(jnp.float32) ** 2, -1)


def _attention(T: int, key, B: int = 1, R: int = 2, K: int = 1, G: int = 8):
    q, k, v, sinks = _draws(key, 4)
    pages = [_low(draw, B * R, K, PAGE, H) for draw in (k, v)]
    lengths = jnp.array([T + 45], jnp.int32)
    positions = lengths[:, None] - T + jnp.arange(T, dtype=jnp.int32)[None, :]
    table = jnp.arange(B * R, dtype=jnp.int32).reshape(B, R)
    return _low(q, B, T, K * G, H), *pages, table, positions, lengths, sinks((K * G,))


def _attention_exact(q, k_pages, v_pages, *rest):
    return attention_reference.paged_attention(*(x.astype(jnp.float32) for x in (q, k_pages, v_pages)), *rest, window=None)


def _tables(op):
    def run(moments, bias):  # without the scales: those behind the last token may be anything
        routing = op(moments, bias, num_active=A, width=D, eps=EPS)
        return routing.gates, routing.ranks, routing.active

    return run


def _moments(key, M: int = 2):
    moments, bias = _draws(key, 2)
    return moments((M, columns(E))).at[:, E].set(D).at[:, E + 1].set(1), bias((E,))


def _routing(M: int):
    """Token t goes to experts t and t + 1: all slots have an expert."""
    experts = (jnp.arange(M)[:, None] * A + jnp.arange(A)[None, :]).astype(jnp.int32)
    return of_experts(experts, jnp.full((M, A), 1 / A, jnp.float32), E)


def _gate_up(key, M: int = 2):
    x, bias = _draws(key, 2)
    return _low(x, M, D), _routing(M), tiles(key, (E, 2 * F, D), 2), 0.1 * bias((E, 2 * F))


def _down(key, M: int = 2):
    h, bias = _draws(key, 2)
    return _low(h, min(M * A, E), M, F), _routing(M), tiles(key, (E, D, F), 1), 0.1 * bias((E, D))


def _grouped(key, M: int = 6):
    x, logits, up, down = _draws(key, 4)
    gates, experts = jax.lax.top_k(logits((M, E)), A)
    weights = tiles(key, (E, 2 * F, D), 2), 0.1 * up((E, 2 * F)), tiles(key, (E, D, F), 1), 0.1 * down((E, D))
    return x((M, D)), experts, jax.nn.softmax(gates, -1), *weights


def _terms(key, M: int = 2):
    x, terms, gain = _draws(key, 3)
    return x((M, D)), terms((A, M, D)), jnp.ones(M, bool), gain((D,))
