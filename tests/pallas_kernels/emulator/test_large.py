"""Arrays beyond 2^31 bytes: what tensor maps and loads reach there, and memory that nobody touches does not exist."""

import functools
import math

import attention_calls
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels import aot, emulator
from pallas_kernels.attention import paged_attention

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))

PAGES = 33_000  # of 8 heads x 64 x 64 in bfloat16, 64 KiB: 2.16 GB


def far_away(pages) -> np.ndarray:
    """A pool of so many pages that ends with these. What lies before them is never touched, and takes no memory here."""
    pages = np.asarray(pages)
    shape = (PAGES, *pages.shape[1:])
    memory = np.zeros(math.prod(shape) * 2 + 64, np.uint8)
    aligned = -memory.ctypes.data % 64  # or JAX would copy it
    pool = memory[aligned : aligned + math.prod(shape) * 2].view(ml_dtypes.bfloat16).reshape(shape)
    pool[-len(pages) :] = pages
    return pool


@pytest.mark.slow
def test_pages_beyond_32_bits():
    """XLA copies each operand for a call of Python: 4.5 GB while it lasts."""
    q, k, v, table, *rest = attention_calls.call((130, 70), kv_heads=8)
    pools = [far_away(pages) for pages in (k, v)]
    assert pools[0].nbytes > 2**31
    attend = functools.partial(paged_attention, window=None)
    emulated = emulator.Emulated(functools.partial(attend, implementation="mosaic"), q, *pools, table + (PAGES - len(k)), *rest)
    near = emulator.Emulated(functools.partial(attend, implementation="mosaic"), q, k, v, table, *rest)
    out, report = emulated(seed=1, policy="late")
    assert not report.launches[0].reports
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(near()[0], np.float32))
