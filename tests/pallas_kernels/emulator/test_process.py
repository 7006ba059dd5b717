"""The emulator among threads and signals, and choices between platforms: nothing of a run is seen by others, or goes on after it."""

import concurrent.futures
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, emulator
from pallas_kernels.emulator import private

plgpu = pytest.importorskip("jax.experimental.pallas.mosaic_gpu")
pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))

x = np.arange(128, dtype=np.float32)


def kernel(body, *scratch):
    return plgpu.kernel(body, out_type=jax.ShapeDtypeStruct(x.shape, x.dtype), scratch_types=list(scratch))


def times(factor):
    def body(x, o):
        o[...] = x[...] * factor

    return kernel(body)


def test_threads_that_compile():
    """Each gets its own kernel's results and report, and the process is as it was."""
    before = dict(os.environ), jax.config.jax_persistent_cache_min_compile_time_secs
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for factor, (out, report) in enumerate(pool.map(lambda n: emulator.run(times(n), x), range(3))):
            np.testing.assert_array_equal(out, x * factor)
            assert len(report.launches) == 1
    assert (dict(os.environ), jax.config.jax_persistent_cache_min_compile_time_secs) == before
    with pytest.raises(Exception, match="(?i)mosaic|cpu|interpret"):
        jax.jit(times(4)).lower(x)


def test_other_threads_do_not_see_hooks():
    def other():
        chosen = jax.jit(lambda x: jax.lax.platform_dependent(x, cuda=lambda x: x + 1, default=lambda x: x + 2))(x)
        with pytest.raises(Exception, match="(?i)mosaic|cpu|interpret"):
            jax.jit(times(5)).lower(x)
        return chosen

    with private.kernels_as_calls(lambda *_: pytest.fail("a thread's kernel was taken for another's")):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            np.testing.assert_array_equal(pool.submit(other).result(), x + 2)


def test_a_compilation_that_was_broken_off(monkeypatch):
    """The kernel is compiled, and dumped, again."""

    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(emulator.capture, "_read", broken)
        with pytest.raises(KeyboardInterrupt):
            emulator.run(times(6), x)
    np.testing.assert_array_equal(emulator.run(times(6), x)[0], x * 6)


@pytest.mark.parametrize("around", [lambda fn: fn, jax.jit, lambda fn: lambda x: jax.vmap(fn)(x[None])[0]], ids=["plain", "jit", "vmap"])
def test_a_choice_between_platforms(around):
    """Made as on a GPU."""
    out, report = emulator.run(around(lambda x: jax.lax.platform_dependent(x, cuda=times(7), default=jnp.negative)), x)
    np.testing.assert_array_equal(out, x * 7)
    assert len(report.launches) == 1


def test_a_choice_that_no_gpu_has():
    with pytest.raises(NotImplementedError, match=r"platform_dependent must have a branch for CUDA, or a default; it has \(\('cpu',\),\)"):
        emulator.run(lambda x: jax.lax.platform_dependent(x, cpu=jnp.negative), x)


def forever(x, o, there):
    """Polls what nobody writes."""
    there[...] = x[...]

    def again(seen):
        plgpu.commit_smem()
        return seen + there[0]

    o[...] = jnp.broadcast_to(jax.lax.while_loop(lambda seen: seen < 1, again, 0.0), o.shape)


@pytest.fixture(scope="module")
def polling():
    """Emulated, with a limit that its test of Ctrl-C does not reach."""
    return emulator.Emulated(kernel(forever, plgpu.SMEM(x.shape, x.dtype)), x * 0)


def test_threads_that_call_one(right):
    """They wait for each other: reports do not mix."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for seed, (out, report) in enumerate(pool.map(lambda n: right(x + n, seed=n), range(8))):
            np.testing.assert_array_equal(out, (x + seed) * 3)
            assert [launch.seed for launch in report.launches] == [seed]


@pytest.fixture(scope="module")
def right():
    return emulator.Emulated(times(3), x)


@pytest.fixture
def interruptible():
    """Also where tests were started by a shell that has background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c(polling, right, interruptible):
    """Ends the emulation, wherever it is; the next one runs, of this and of others."""
    for _ in range(2):
        timer = threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        started = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            polling()
        assert time.monotonic() - started < 10
        np.testing.assert_array_equal(right()[0], x * 3)
    np.testing.assert_array_equal(polling(x + 1)[0], 1)


def test_a_loop_that_only_waits():
    said = r"more instructions than limit=2,000 allows .*\n  block \(0, 0, 0\) warp \d at .*test_process.py:"
    with pytest.raises(emulator.Fault, match=said):
        emulator.run(kernel(forever, plgpu.SMEM(x.shape, x.dtype)), x * 0, limit=2000)


@pytest.mark.parametrize("name", ["blocks", "change"])
def test_called_by_what_it_calls(name):
    emulated = emulator.Emulated(times(3), x, **{name: lambda *_: emulated()})
    with pytest.raises(RuntimeError, match="must not be called while it runs, by its own change or blocks"):
        emulated()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"seed": -1}, "seed must be an integer, 0 or more; got -1"),
        ({"seed": "a"}, "seed must be an integer, 0 or more; got a"),
        ({"seed": 1.5}, "seed must be an integer, 0 or more; got 1.5"),
        ({"policy": ["late"]}, r"policy must be one of .*; got \['late'\]"),
        ({"limit": 0}, "limit must be an integer, 1 or more; got 0"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        emulator.run(times(3), x, **options)
