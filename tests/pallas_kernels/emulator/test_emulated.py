"""The emulator from Python: any function, many schedules, blocks of a launch, and what goes wrong."""

import functools

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, emulator, norm
from pallas_kernels.emulator import launch
from pallas_kernels.emulator.ptx import parse
from pallas_kernels.emulator.ptx.program import Program

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))

op = functools.partial(norm.add_norm, implementation="mosaic")
xla = functools.partial(norm.add_norm, implementation="xla")


@functools.cache
def arguments():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return draw(3, 64), draw(2, 3, 64), np.array([True, False, True]), draw(64)


@pytest.fixture(scope="module")
def emulated():
    """Compiled once; what stands last in `emulated.changes` spoils its kernel."""
    changes = []
    whole = lambda compiled, host: (launch.load(compiled)[0], host)
    made = emulator.Emulated(op, *arguments(), change=lambda *kernel: (changes or [whole])[-1](*kernel))
    made.changes = changes
    return made


def test_a_function(emulated):
    for seed, policy in enumerate(emulator.POLICIES):
        out, report = emulated(seed=seed, policy=policy)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-5), out, jax.tree.map(np.asarray, xla(*arguments())))
        (done,) = report.launches
        assert (done.name, done.grid, done.blocks, done.warps, done.reports) == ("add_norm", (3, 1, 1), None, 12, [])
        assert (done.seed, done.policy) == (seed, policy) and sum(done.executed.values()) > 100
        assert str(report).startswith("add_norm: 3 blocks, ") and "s, nothing to report; noted: " in str(report)


def test_other_arguments(emulated):
    other = (arguments()[0] + 1, *arguments()[1:])
    np.testing.assert_allclose(emulated(*other)[0][0], xla(*other)[0], rtol=1e-5)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda x, *rest: (x[:2], *rest), r"compiled, \(float32\[3, 64\], .*; got \(float32\[2, 64\], .*; make another"),
        (lambda x, *rest: (x.astype(np.int32), *rest), r"; got \(int32\[3, 64\], "),
        (lambda x, *rest: (x,), r"; got \(float32\[3, 64\],\); make another"),
    ],
)
def test_arguments_that_it_was_not_compiled_for(emulated, change, said):
    with pytest.raises(ValueError, match=f"arguments must have the shapes and dtypes that were {said}" if said[0] == "c" else said):
        emulated(*change(*arguments()))


def test_a_function_without_kernels():
    out, report = emulator.run(lambda x: x + 1, np.arange(3))
    assert out.tolist() == [1, 2, 3] and not report.launches and str(report) == "no kernels were launched"


def test_under_jit_vmap_and_scan():
    """A kernel in a loop is launched as often as that runs."""
    x, *others = arguments()

    @jax.jit
    def many(x):
        def step(x, _):
            return jax.vmap(lambda row: op(row, *others))(x)[0], None

        return jax.lax.scan(step, x, None, length=2)[0]

    out, report = emulator.run(many, jnp.stack([x, -x]))
    assert [np.prod(done.grid) for done in report.launches] == [6, 6]
    wanted = [xla(xla(start, *others)[0], *others)[0] for start in (x, -x)]
    np.testing.assert_allclose(out, np.stack(wanted), rtol=1e-5, atol=1e-5)


def test_some_blocks(emulated):
    asked = []

    def choose(name, grid, cluster):
        asked.append((name, grid, cluster))
        return [(1, 0, 0)]

    out, report = emulator.run(op, *arguments(), blocks=choose, observe=True)
    (done,) = report.launches
    assert asked == [("add_norm", (3, 1, 1), (1, 1, 1))]
    assert done.blocks == ((1, 0, 0),) and "1 of 3 blocks" in str(done)
    written = done.written(0)
    assert written.shape == done.outputs[0].shape and written.reshape(3, -1).all(1).tolist() == [False, True, False]
    assert written.reshape(3, -1).any(1).tolist() == [False, True, False]
    np.testing.assert_array_equal(out[0][1], emulated()[0][0][1])
    (observed,) = done.observed.values()
    assert observed.executed.sum() == sum(done.executed.values())
    assert observed.copied_in == 64 * 4 * 4, "a row, two terms of it and the scale"


def test_a_result_that_is_not_written():
    """The line of a launch says so, and what it read beyond what was written; where only some blocks run, results are not looked at."""

    def half(x, o, never, there):
        there[pl.ds(0, 128)] = x[...]
        o[pl.ds(0, 128)] = there[pl.ds(128, 128)]

    shape = jax.ShapeDtypeStruct((256,), jnp.float32)
    fn = plgpu.kernel(half, out_type=(shape, shape), scratch_types=[plgpu.SMEM((256,), jnp.float32)])
    report = emulator.run(fn, jnp.ones(128))[1]
    (done,) = report.launches
    assert done.unwritten() == {0: 128, 1: 256}
    said = "128 of 256 elements of result 0 not written; 256 of 256 elements of result 1 not written"
    assert f"s, {said}; noted: uninitialised read (test_emulated.py:" in str(report)
    some = emulator.run(fn, jnp.ones(128), blocks=lambda *_: [(0, 0, 0)])[1]
    assert not some.launches[0].unwritten() and "nothing to report" in str(some)


@pytest.mark.parametrize("given, said", [([(3, 0, 0)], r"\(3, 0, 0\)"), ([0], r"\[0\]"), ([(0, 0)], r"\(0, 0\)"), (1, "1")])
def test_blocks_that_are_not_there(given, said):
    with pytest.raises(ValueError, match=rf"blocks must give clusters \(x, y, z\) of the \(3, 1, 1\) that add_norm has; got {said}"):
        emulator.run(op, *arguments(), blocks=lambda *_: given)


def test_an_unknown_policy(emulated):
    with pytest.raises(ValueError, match="policy must be one of fair, uneven, early, late, order; got quick"):
        emulated(policy="quick")


def spoiled(before: str, after: str):
    def change(compiled, host):
        assert before in compiled.ptx
        return Program(parse.parse(compiled.ptx.replace(before, after, 1))), host

    return change


def broken(compiled, host):
    raise KeyError("mine")


@pytest.mark.parametrize(
    "change, error, said",
    [
        (spoiled("mbarrier.init", "mbarrier.inval"), emulator.Fault, "no mbarrier was initialised"),
        (spoiled("st.global", "weird.global"), NotImplementedError, r"does not know the instruction weird\.global"),
        (broken, KeyError, "mine"),
        (lambda compiled, host: compiled, TypeError, r"change must return \(Program, Host\), such as it was given; got Compiled"),
    ],
)
def test_what_goes_wrong_reaches_the_caller(emulated, change, error, said):
    """As it was raised, and the next run is none the worse."""
    emulated.changes.append(change)
    try:
        with pytest.raises(error, match=said):
            emulated()
    finally:
        emulated.changes.pop()
    assert not emulated()[1].launches[0].reports


def test_the_process_is_as_it_was_after_an_error():
    """Kernels are for GPUs again, and what was compiled is kept."""
    traced = []

    @jax.jit
    def kept(x):
        traced.append(x)
        return x + 1

    kept(1)

    def fails(*args):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        emulator.Emulated(fails, *arguments())
    kept(1)
    assert len(traced) == 1
    with pytest.raises(Exception, match="(?i)mosaic|cpu|interpret"):
        jax.jit(op).lower(*arguments()).compile()
