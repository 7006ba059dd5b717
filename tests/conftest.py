"""Every test runs on the CPU without a network, with JAX's strictest settings."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """A random checkpoint in both published layouts, with golden logits of the reference implementations."""
    return DATA / "tiny"
