"""NaN and infinities beside healthy rows: in pages, in other rows, in experts that nobody chose. No bit of a healthy row changes."""

from collections.abc import Callable
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, emulator
from pallas_kernels.bench import small
from pallas_kernels.emulator import examine
from pallas_kernels.mxfp4.tiles import Tiles

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))

ROW = 1  # that is spoiled
WORST = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf}


@dataclasses.dataclass(frozen=True)
class Beside:
    """What of a call is spoiled, and what of its results is healthy."""

    op: str
    name: str
    spoil: Callable  # arguments, value -> arguments
    healthy: Callable  # arguments, results -> arrays


def with_row(arguments: tuple, *places: int, value: float, axis: int = 0) -> tuple:
    """Row `ROW` along `axis` of the arguments at these places, spoiled."""
    out = list(arguments)
    for place in places:
        out[place] = np.array(out[place])
        out[place][(slice(None),) * axis + (ROW,)] = value
    return tuple(out)


def others(results, axis: int = 0) -> list[np.ndarray]:
    return [np.delete(result, ROW, axis) for result in results]


def spoil_qkv(arguments, value):
    x, square_sum, *rest = with_row(arguments, 0, 1, value=value)
    for i in (4, 5):  # pages of others; what is written to is written over
        rest[i] = np.array(rest[i])
        rest[i][-1] = value
    return x, square_sum, *rest


def healthy_qkv(arguments, results):
    q, *pages = results
    kept = [np.array(pool) for pool in pages]
    for pool in kept:
        pool[arguments[8][ROW], :, arguments[9][ROW]] = 0
        pool[-1] = 0
    return [*others([q]), *kept]


def spoil_pages(arguments, value):
    """Wherever the pages hold a filler, and the whole of a sequence that is another row's."""
    q, k_pages, v_pages, table, *rest = with_row(arguments, 0, value=value)
    pools = [np.where(np.asarray(pool) == 50, np.float32(value), np.asarray(pool, np.float32)) for pool in (k_pages, v_pages)]
    for pool in pools:
        pool[table[ROW]] = value
    return q, *(pool.astype(jnp.bfloat16) for pool in pools), table, *rest


def spoil_few(arguments, value):
    rows, routing, h, *rest = arguments
    gates = np.array(routing.gates)
    gates[:, ROW] = value
    (rows,), (h,) = with_row((rows,), 0, value=value), with_row((h,), 0, value=value, axis=1)
    return rows, routing.replace(gates=gates), h, *rest


def spoil_experts(arguments, value):
    """Another token's row, and the matrices of the expert that nobody chose, whose scales are then no number."""
    x, experts, gates, up, up_bias, down, down_bias = with_row(arguments, 0, 2, value=value)
    nobody = next(e for e in range(len(up_bias)) if not np.any(experts == e))

    def spoiled(tiles):
        scales = np.array(tiles.scales)
        scales[nobody] = 0xFFFFFFFF
        return Tiles(tiles.words, scales)

    biases = [np.where(np.arange(len(bias))[:, None] == nobody, np.float32(value), bias) for bias in (up_bias, down_bias)]
    return x, experts, gates, spoiled(up), biases[0], spoiled(down), biases[1]


def spoil_norm(arguments, value):
    """A row's terms, which is not valid; and another whole row."""
    x, terms, valid, gain = arguments
    assert not valid[ROW] and valid[2]
    x, terms = np.array(x), np.array(terms)
    terms[:, ROW], terms[:, 2], x[2] = value, value, value
    return x, terms, valid, gain


row_of = lambda *places: functools.partial(lambda arguments, value: with_row(arguments, *places, value=value))
rows_but_one = lambda _, results: others(results)
CASES = [
    Beside("projection.qkv", "5 tokens", spoil_qkv, healthy_qkv),
    Beside("projection.out", "5 tokens", row_of(0, 3), rows_but_one),
    Beside("projection.unembed", "16 tokens", row_of(0, 1), rows_but_one),
    Beside("attention.decode", "pages that end early", spoil_pages, rows_but_one),
    Beside("attention.decode", "parts, 1, 130, 700", spoil_pages, rows_but_one),
    Beside("attention.decode", "a ring, 127", spoil_pages, rows_but_one),
    Beside("attention.prefill", "after a past", spoil_pages, rows_but_one),
    Beside("attention.prefill", "padding", spoil_pages, rows_but_one),
    Beside("routing.route", "5 x 32", row_of(0), lambda _, r: [*others(r[:2], 1), *others(r[3:])]),
    Beside("routing.router", "6 x 32", row_of(0), rows_but_one),
    Beside("moe.decode", "3 tokens, 4 experts of 128 x 128, some", spoil_few, lambda _, results: others(results, 1)),
    Beside("moe.decode", "16 tokens", spoil_few, lambda _, results: others(results, 1)),
    Beside("moe.grouped", "3 chosen", spoil_experts, rows_but_one),
    Beside("norm.add_norm", "3 x 256", spoil_norm, lambda _, results: [result[:2] for result in results]),
]


@pytest.mark.thorough
@pytest.mark.parametrize("beside", CASES, ids=lambda beside: f"{beside.op}, {beside.name}")
def test_what_is_no_number_stays_where_it_is(beside):
    case = small.cases([beside.op], [beside.name])[0]
    arguments = case.arguments()
    with case.tuned():
        emulated = emulator.Emulated(case.run, *arguments)
    before = examine.leaves(emulated(seed=0, policy="fair")[0])
    wanted = beside.healthy(arguments, before)
    assert all(np.all(np.isfinite(array.astype(np.float32))) for array in wanted)
    for number, value in enumerate(WORST.values()):
        spoiled = beside.spoil(arguments, value)
        out, report = emulated(*spoiled, seed=number + 1, policy=emulator.POLICIES[number + 1])
        assert not [found for launch in report.launches for found in launch.reports]
        after = examine.leaves(out)
        assert not all(np.array_equal(got, healthy) for got, healthy in zip(after, before, strict=True)), "nothing was spoiled"
        for got, healthy in zip(beside.healthy(spoiled, after), wanted, strict=True):
            np.testing.assert_array_equal(got, healthy)
