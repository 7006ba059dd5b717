"""The Hopper kernel of prefill attention in the interpreter: as near to float32 as XLA's bfloat16 form; with decoding it agrees."""

import dataclasses

from attention_calls import alone, call, check, run
import numpy as np
import oracle
import pytest

from pallas_kernels.attention import tuning


@pytest.mark.thorough
@pytest.mark.parametrize(
    "lengths, tokens, options, window",
    [
        ((40, 150, 333), 40, {}, None),  # at the start, after a past; the second tile is a quarter full
        ((300, 64), 40, {"entries": 3}, 64),  # the first one's ring has wrapped
        ((230,), 130, {"groups": 1, "sinks": 6}, None),
        ((100,), 20, {"groups": 16, "sinks": -200}, None),
    ],
)
def test_prefill(lengths, tokens, options, window):
    check(call(lengths, tokens, kv_heads=1, **options), window)


@pytest.mark.thorough
@pytest.mark.parametrize("filler", [np.nan, np.inf])
@pytest.mark.parametrize(
    "lengths, tokens, options, window",
    [
        ((40, 150, 333), 40, {}, None),
        ((300, 70), 40, {"entries": 3}, 64),
        ((170,), 100, {"groups": 1}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # zero times infinity, which is masked, in the interpreter
def test_what_was_never_written_may_be_anything(lengths, tokens, options, window, filler):
    """To the bit what it is with zeros there."""
    got, wanted = (run(call(lengths, tokens, kv_heads=1, **options, filler=value), window) for value in (filler, 0))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.thorough
def test_padding_means_nothing_and_costs_nothing(monkeypatch):
    """Rows with fewer tokens than the chunk has, one of them with none in its second tile and one with none at all."""
    monkeypatch.setattr(tuning, "PREFILL", dataclasses.replace(tuning.PREFILL, rows=64))  # 16 tokens a tile
    q, k_pages, v_pages, table, positions, lengths, sinks = call((150, 120, 200), 33, kv_heads=1, entries=4)
    fewer = np.array([3, 20, 33], np.int32)
    real = np.arange(33)[None, :] < 33 - fewer[:, None]
    got = check((q, k_pages, v_pages, table, positions, lengths - fewer, sinks), 70, real=real)
    np.testing.assert_array_equal(got[1, 16:], 0)  # no page is read
    np.testing.assert_array_equal(got[2], 0)


@pytest.mark.thorough
def test_a_row_is_the_same_alone_and_in_a_batch():
    arguments = call((40, 150, 333), 40, kv_heads=1)
    batch = run(arguments, None)
    np.testing.assert_array_equal(run(alone(arguments, 1), None)[0], batch[1])


@pytest.mark.thorough
def test_the_last_token_is_what_decoding_gives():
    q, *pages, table, positions, lengths, sinks = call((80, 260), 20, kv_heads=1)
    chunk = run((q, *pages, table, positions, lengths, sinks), 128)[:, -1:]
    token = run((q[:, -1:], *pages, table, positions[:, -1:], lengths, sinks), 128)
    assert oracle.error(chunk, token) < 2**-8


@pytest.mark.thorough
def test_warpgroups_wait_for_each_other(capfd):
    """The interpreter's detector of races finds none, with more pages than the ring has."""
    check(call((500,), 20, kv_heads=1), None, races=True)
    assert "RACE" not in capfd.readouterr().out
