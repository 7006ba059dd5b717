"""The bench's harness, without a GPU: a wrong kernel gets no time, floors are arithmetic, and every set of arguments is used."""

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import bench
from pallas_kernels.bench import Case, measure

CEILINGS = measure.Ceilings(bandwidth=4e12, flops=8e14)


def draw(key):
    return (jax.random.normal(key, (64, 64)),)


def case(run=jnp.sin, **changes):
    return dataclasses.replace(Case("op", "small", run, jnp.sin, draw, bytes=2 * 64 * 64 * 4, flops=64 * 64), **changes)


def ticking():
    """A clock that is one second on whenever it is read."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


def test_floors_are_the_larger_of_bytes_and_operations():
    assert CEILINGS.floor(case(bytes=4_000_000, flops=1)) == pytest.approx(1e-6)
    assert CEILINGS.floor(case(bytes=1, flops=8_000_000_000)) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: jnp.sin(x) * 1.01,
        lambda x: jnp.sin(x).at[3, 5].add(0.1),  # one element of 4096
        lambda x: jnp.sin(x).at[0, 0].set(jnp.nan),
        lambda x: jnp.zeros_like(x),
    ],
)
def test_a_wrong_kernel_gets_no_time(wrong):
    def clock():
        raise AssertionError("timed")

    result = measure.measure(case(wrong), CEILINGS, clock=clock)
    assert not result.right and result.seconds is None and result.ratio is None and result.launched is None


def test_rounding_to_bfloat16_is_right():
    result = measure.measure(case(lambda x: jnp.sin(x).astype(jnp.bfloat16).astype(jnp.float32)), CEILINGS)
    assert result.right and 0.0005 < result.error < measure.ERROR / 2


def test_integers_must_be_equal():
    order = lambda x: jnp.argsort(x, axis=1)
    assert measure.errors(case(order, reference=order)) == (0, 0)
    assert measure.errors(case(lambda x: order(x).at[0, 0].add(1), reference=order)) == (math.inf, math.inf)


def test_other_shapes_than_the_reference_has():
    with pytest.raises(ValueError, match="op, small: .* different shapes"):
        measure.errors(case(lambda x: jnp.sin(x)[:1]))


def test_time_is_that_of_one_run(monkeypatch):
    monkeypatch.setattr(measure, "sets", lambda case, floor: 5)
    result = measure.measure(case(), CEILINGS, clock=ticking())
    assert result.seconds == pytest.approx(2 / (measure._PROGRAMS * 5))  # three readings: launching, and waiting, a second each
    assert result.launched == 0.5 and result.ratio == pytest.approx(result.seconds / result.floor)


def test_sets_of_arguments_empty_the_cache_and_outlast_a_launch():
    size = lambda count: lambda key: (jnp.zeros((count,), jnp.int8),)
    assert measure.sets(case(arguments=size(2**20)), 1.0) == measure._MOST_SETS
    assert measure.sets(case(arguments=size(2**26)), 1.0) == 4
    assert measure.sets(case(arguments=size(2**26)), measure._LONG / 20) == 20
    assert measure.sets(case(arguments=size(2**30)), 1.0) == 2
    huge = lambda key: (jnp.zeros((2**31 - 1,), jnp.float32),) * 3
    assert measure.sets(case(arguments=huge), 1e-9) == 1


def test_donated_arguments_are_handed_on(monkeypatch):
    """Each run gets what the one before it made of the donated array."""
    monkeypatch.setattr(measure, "sets", lambda case, floor: 2)
    seen = []

    def count(x, cache, step):
        jax.debug.callback(lambda c: seen.append(float(c)), cache[0, 0], ordered=True)
        return jnp.sum(x), cache + step

    arguments = lambda key: (*draw(key), jnp.zeros((2, 2)), jnp.float32(1))
    counting = case(count, reference=count, arguments=arguments, donate=(1,))
    assert measure.measure(counting, CEILINGS).right
    runs = 2 + measure._REPEATS * measure._PROGRAMS
    jax.effects_barrier()
    assert sorted(seen[2:]) == sorted(2 * [float(i) for i in range(runs)])  # the first two are the check's


def test_small_arrays_are_shared_between_sets_unless_they_tell_runs_apart():
    small, large = jnp.zeros(8), jnp.zeros(measure._SMALL // 4)
    assert measure._own([small, large], donates=False) == [False, True]
    assert measure._own([small, small], donates=False) == [True, True]
    assert measure._own([small, small], donates=True) == [False, False]

    mixed = lambda key: {"x": jax.random.normal(key, (128, 128)), "gain": jax.random.normal(key, (128,))}
    ours = case(lambda a: a["x"] * a["gain"][None], arguments=lambda key: (mixed(key),))
    assert measure.measure(dataclasses.replace(ours, reference=ours.run), CEILINGS).seconds > 0


@pytest.mark.filterwarnings("ignore:Some donated buffers")
def test_a_donated_argument_must_come_back():
    with pytest.raises(ValueError, match=r"no output of shape \(64, 64\) .* takes the place"):
        measure.measure(case(jnp.sum, reference=jnp.sum, donate=(0,)), CEILINGS)


def test_ceilings_are_rates():
    found = measure.ceilings(clock=ticking(), scale=64)
    seconds = 2 / (measure._PROGRAMS * measure._MOST_SETS)
    assert found.flops == pytest.approx(2 * 64**3 / seconds) and found.bandwidth == pytest.approx(2 * 2 * 8 * 64 * 64 / seconds)


def test_tables_are_plain_text():
    text = bench.table(["op", "us", "ratio", "note"], [["moe", "12.5", "1.25", ""], ["attention", "1,003.0", "", "WRONG"]])
    assert text.split("\n") == [
        "op              us  ratio  note",
        "moe           12.5   1.25",
        "attention  1,003.0         WRONG",
    ]


def test_cases_are_chosen_by_name(monkeypatch):
    module = type(sys)("fake_bench")
    module.cases = lambda: [case(op="moe.decode", name="20b, 1 token"), case(op="moe.prefill", name="120b, 8k"), case(op="route")]
    monkeypatch.setitem(sys.modules, "fake_bench", module)
    monkeypatch.setattr(bench, "MODULES", ("fake_bench",))
    assert len(bench.cases()) == 3 and len(bench.cases(["moe"])) == 2
    assert [c.name for c in bench.cases(["moe", "route"], ["120b"])] == ["120b, 8k"]
    assert [c.name for c in bench.cases(names=["20b", "8k"])] == ["20b, 1 token", "120b, 8k"], "from the start of a word"
    assert [c.name for c in bench.cases(names=["20b, 1 token"])] == ["20b, 1 token"] and len(bench.cases(names=[", "])) == 2
    with pytest.raises(ValueError, match=re.escape("names ('',)")):
        bench.cases(names=[""])
    with pytest.raises(ValueError, match="no case of moe.decode, moe.prefill, route"):
        bench.cases(["attention"])
    assert case(op="moe.xla").compares and not case().compares
    assert bench.cases()[0].shapes()[0].shape == (64, 64)


def test_results_are_json():
    assert json.loads(json.dumps(dataclasses.asdict(measure.measure(case(), CEILINGS))))["op"] == "op"


@pytest.mark.thorough
def test_without_a_hopper():
    done = subprocess.run([sys.executable, "-m", "pallas_kernels.bench"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("There is no Hopper GPU") and len(done.stderr.splitlines()) == 1
