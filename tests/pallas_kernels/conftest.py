"""The two instruments for kernels on a machine without a GPU: Mosaic GPU's interpreter, and compiling for a Hopper that is absent."""

import pytest

from pallas_kernels import aot, hopper


@pytest.fixture(scope="session")
def compile_for_hopper():
    """`pallas_kernels.aot.compile`. Skips the test where the extra `aot` is not installed."""
    if reason := aot.unavailable():
        pytest.skip(reason)
    return aot.compile


@pytest.fixture(scope="session")
def interpreter():
    """`pallas_kernels.hopper.interpret`: within it, kernels that are traced run on the CPU."""
    return hopper.interpret
