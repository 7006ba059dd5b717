"""The emulator among threads, and choices between platforms: nothing of a capture is seen by others, or stays."""

import concurrent.futures
import os

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
