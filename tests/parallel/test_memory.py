"""How much memory is free, on systems that say so in their own ways, or not at all."""

import builtins
import io
import os
import types

import jax
import pytest

from gptoss_jax.parallel import memory


@pytest.fixture
def meminfo(monkeypatch):
    """Lets /proc/meminfo hold a text, or raise."""

    def hold(text):
        def opened(path, *args, **kwargs):
            assert path == "/proc/meminfo"
            if isinstance(text, Exception):
                raise text
            return io.StringIO(text)

        monkeypatch.setattr(builtins, "open", opened)

    return hold


@pytest.mark.parametrize(
    "text",
    [FileNotFoundError(2, "none"), PermissionError(13, "no"), "", "MemFree: 5 kB\n", "MemAvailable:\n", "MemAvailable: lots kB\n", "\0\n"],
    ids=repr,
)
def test_a_host_that_does_not_tell(text, meminfo, monkeypatch):
    meminfo(text)
    assert memory.host() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for answer in (lambda _: -1 if _ == "SC_PHYS_PAGES" else 4096, lambda _: 0, lambda _: (_ for _ in ()).throw(ValueError("unknown"))):
        monkeypatch.setattr(os, "sysconf", answer)
        assert memory.host() == 0 and memory.available(jax.devices("cpu")[0]) is None


def test_a_host_that_tells(meminfo):
    meminfo("MemTotal: 9 kB\nMemAvailable:    7 kB\n")
    assert memory.host() == memory.available(jax.devices("cpu")[0]) == 7 * 1024


@pytest.mark.parametrize("stats", [None, {}, {"bytes_in_use": 5}, NotImplementedError("no"), jax.errors.JaxRuntimeError("UNIMPLEMENTED")])
def test_a_device_that_does_not_tell(stats):
    def memory_stats():
        if isinstance(stats, Exception):
            raise stats
        return stats

    assert memory.available(types.SimpleNamespace(platform="gpu", memory_stats=memory_stats)) is None


def test_a_device_that_tells():
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 50, "bytes_in_use": 20})
    assert memory.available(device) == 30
