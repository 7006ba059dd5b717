"""The Hopper kernel of decode attention in the interpreter: as near to float32 as XLA's bfloat16 form, however pages and windows meet."""

import functools

from attention_calls import alone, call, check, compiled, draw, run
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import primitives
from pallas_kernels.attention import paged_attention, tuning


@pytest.mark.quick("lengths3-options3-128")
@pytest.mark.parametrize(
    "lengths, options, window",
    [
        ((1, 63, 64, 65, 200), {"kv_heads": 1}, None),
        ((128, 190), {"groups": 1, "kv_heads": 3}, None),
        ((700, 30), {"kv_heads": 1}, 300),  # parts of a window
        ((127, 128, 129, 191, 300), {"kv_heads": 1, "entries": 3}, 128),  # 191: one key of a page; 300: a wrapped ring
        ((300,), {"tokens": 2, "kv_heads": 1}, 65),
        ((30, 150), {"kv_heads": 1, "sinks": 6}, None),
        ((30, 150), {"kv_heads": 1, "sinks": -200}, None),
    ],
)
def test_decode(lengths, options, window):
    check(call(lengths, **options), window)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "lengths, options",
    [
        ((1, 130, 700), {}),  # 1, 2 and 6 of 8 parts see something
        ((66, 520), {"tokens": 3, "groups": 16, "sinks": 5}),
        ((257, 2150), {"entries": 35}),  # 16 parts: two warpgroups a block
    ],
)
def test_parts_of_a_sequence_come_together(lengths, options):
    check(call(lengths, kv_heads=1, **options), None)


@pytest.mark.quick("lengths0-options0-None-nan")
@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "lengths, options, window",
    [
        ((1, 63, 64, 130), {"kv_heads": 1}, None),
        ((700, 30), {"kv_heads": 1}, 300),
        ((127, 129, 300), {"kv_heads": 1, "entries": 3}, 128),
        ((300,), {"tokens": 2, "kv_heads": 1}, 65),
        ((257, 2150), {"kv_heads": 1, "entries": 35}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # zero times infinity, which is masked, in the interpreter
def test_what_was_never_written_may_be_anything(lengths, options, window, filler):
    """To the bit what it is with zeros there: in the rest of the last page as in pages of others."""
    got, wanted = (run(call(lengths, **options, filler=value), window) for value in (filler, 0))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.thorough
def test_tiles_of_a_short_chunk(monkeypatch):
    """More than 64 rows, if the table of tuning says so: three tiles, each with parts of its own."""
    monkeypatch.setattr(tuning, "DECODE_ROWS", 1024)
    monkeypatch.setattr(tuning, "DECODE", (tuning.Decode(1 << 31, 2),))
    check(call((17, 300), 17, kv_heads=1), None)


@pytest.mark.thorough
def test_a_row_is_the_same_alone_and_in_a_batch():
    arguments = call((1, 130, 700), kv_heads=1)
    batch = run(arguments, None)
    for row in range(3):
        np.testing.assert_array_equal(run(alone(arguments, row), None)[0], batch[row])


@pytest.mark.thorough
def test_rows_past_their_length_are_finite_and_change_no_others():
    arguments = call((1, 130, 700), kv_heads=1)
    whole = run(arguments, None)
    *rest, lengths, sinks = arguments
    got = run((*rest, lengths - np.array([1, 0, 1], np.int32), sinks), None)  # an empty row, and one that appends nothing
    np.testing.assert_array_equal(got[1], whole[1])
    np.testing.assert_array_equal(got[[0, 2]], 0)  # nothing is read: all weight is on the sinks


@pytest.mark.parametrize("window", [None, 65])
def test_gradients_around_the_kernel_are_those_of_the_xla_form(window):
    """A kernel has no derivative of its own."""
    q, k_pages, v_pages, *rows, sinks = call((30, 150), kv_heads=1)
    weigh = draw(*q.shape, seed=9)

    def loss(q, k_pages, v_pages, sinks, implementation):
        y = paged_attention(q, k_pages, v_pages, *rows, sinks, window=window, implementation=implementation)
        return jnp.sum(y.astype(jnp.float32) * weigh)

    named, plain = (
        jax.jit(jax.grad(functools.partial(loss, implementation=name), argnums=(0, 1, 2, 3)))(q, k_pages, v_pages, sinks)
        for name in ("mosaic", "xla")
    )
    for a, b in zip(named, plain, strict=True):
        assert np.any(b) and np.array_equal(a, b)


@pytest.mark.thorough
def test_parts_meet_before_they_are_joined(monkeypatch, capfd):
    """The interpreter's detector of races finds none, and finds one where blocks do not wait for each other."""
    monkeypatch.setattr(tuning, "DECODE", (tuning.Decode(1 << 31, 2, 2, least=1),))
    arguments = call((250,), kv_heads=1)
    check(arguments, None, races=True)
    assert "RACE" not in capfd.readouterr().out
    monkeypatch.setattr(primitives, "meet", primitives.leave)
    compiled.cache_clear()
    try:
        run(arguments, None, races=True)
    except RuntimeError as error:  # with jax 0.12; 0.11 prints and goes on
        print(error)
    compiled.cache_clear()
    assert "RACE" in capfd.readouterr().out
