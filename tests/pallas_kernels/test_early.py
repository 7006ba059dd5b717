"""Before their turn the kernels of a decode step read weights and nothing else, where they may read at all, and write nothing."""

import functools

import before_turn
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, norm, projection, routing
from pallas_kernels.attention import paged_attention
from pallas_kernels.moe import decode
from pallas_kernels.mxfp4.tiles import Tiles, tiled_shapes

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))
EPS = 1e-5


def rows(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def low(*shape):
    return jnp.asarray(rows(*shape), jnp.bfloat16)


def of_projection(op):
    x, w, ones, places = low(3, 128), low(64, 128), np.ones(3, np.float32), np.arange(3, dtype=np.int32)
    if op == "out":
        return projection.project_out, [x, w, rows(64), rows(3, 64), rows(64)]
    if op == "unembed":
        return functools.partial(projection.unembed, eps=EPS), [x, ones, w]
    pages = low(3, 1, 16, 64)
    args = [x, ones, low(1, 3, 64, 128), rows(1, 3, 64), rows(3, 32), rows(3, 32), pages, pages, places, places]
    return functools.partial(projection.project_qkv, eps=EPS), args


def of_experts(op):
    experts = jnp.array([[0, 2], [2, 3], [0, 3]], jnp.int32)
    known = routing.of_experts(experts, jnp.full((3, 2), 0.5, jnp.float32), 4)
    tiles = lambda rows, n: Tiles(*(jnp.ones(shape, jnp.uint32) for shape in tiled_shapes((4, rows, 128), n)))
    if op == "gate_up":
        return functools.partial(decode.gate_up, num_active=2, limit=1.0), [low(3, 128), known, tiles(256, 2), rows(4, 256)]
    return functools.partial(decode.down, num_active=2), [low(4, 3, 128), known, tiles(128, 1), rows(4, 128)]


def of_attention(_):
    pages = low(4, 2, 64, 64)
    table, positions, lengths = np.arange(4, dtype=np.int32).reshape(1, 4), np.array([[150]], np.int32), np.array([151], np.int32)
    call = functools.partial(paged_attention, window=None)
    return call, [low(1, 1, 4, 64), pages, pages, table, positions, lengths, rows(4)]


def of_routing(op):
    if op == "router":
        return routing.router, [rows(3, 192), rows(192), rows(32, 192), np.ones(3, bool)]
    return functools.partial(routing.route, num_active=4, width=192, eps=EPS), [rows(3, 64), rows(32)]


def of_norm(_):
    return norm.add_norm, [rows(3, 192), rows(2, 3, 192), np.ones(3, bool), rows(192)]


# op: its arguments, whether the next launch is set up before it waits, the kernel's operands that it reads before
CASES = {
    "qkv": (of_projection, "before", {2}),  # w
    "out": (of_projection, "before", {1}),
    "unembed": (of_projection, "before", {2}),
    "attention": (of_attention, "before", set()),
    "router": (of_routing, "before", {1, 2}),  # gain and weight
    "route": (of_routing, "before", set()),
    "gate_up": (of_experts, "after", set()),
    "down": (of_experts, "before", {1, 4, 5}),  # active, words, scales: `gate_up` has waited for whoever made these
    "add_norm": (of_norm, "before", set()),
}


@pytest.mark.quick("out")
@pytest.mark.parametrize("op", CASES)
def test_what_a_kernel_reads_before_its_turn(op):
    make, turn, early = CASES[op]
    call, args = make(op)
    call = functools.partial(call, implementation="mosaic")
    assert before_turn.seen(functools.partial(call, early=True) if early else call, *args) == (turn, early)


@pytest.mark.thorough
@pytest.mark.parametrize("op", [op for op, (_, _, early) in CASES.items() if early])
def test_unless_it_is_allowed_to_it_reads_nothing(op):
    make, turn, _ = CASES[op]
    call, args = make(op)
    assert before_turn.seen(functools.partial(call, implementation="mosaic"), *args) == (turn, set())
