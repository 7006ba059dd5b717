"""How much memory there is still to be had, on the host and on a device."""

import os

import jax


def available(device: jax.Device) -> int | None:
    """Bytes that a device can still give out, the host's for a CPU; None where it does not tell."""
    if device.platform == "cpu":
        return host() or None
    try:
        stats = device.memory_stats() or {}
    except Exception:  # a backend that does not know of it says so in words of its own
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def host() -> int:
    """Bytes that this machine can still give out; 0 where it does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):  # there is none, or one of another form
        pass
    try:  # not Linux: all of it
        return max(0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 0
