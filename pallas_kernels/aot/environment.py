"""State of the process that a compilation needs changed while it lasts: there is no other way to tell Mosaic GPU and jax some things."""

import contextlib
import os
import threading

import jax

ALONE = threading.RLock()  # whoever changes this state holds it, so that no thread sees, or keeps, another's


@contextlib.contextmanager
def variables(**values: str):
    """Within this, environment variables have these values; afterwards those they had before."""
    with ALONE:
        before = {name: os.environ.get(name) for name in values}
        try:
            os.environ.update(values)
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def nothing_cached():
    """Within this, no program is written to jax's cache on disk: one for an absent GPU cannot be loaded, and jax would warn of it."""
    with ALONE:
        before = jax.config.jax_persistent_cache_min_compile_time_secs
        try:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
            yield
        finally:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
