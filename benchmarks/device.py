"""The device that is measured: what it is, what it can do at most, and which part of a run it worked at all."""

from collections.abc import Callable, Iterable
import datetime
from pathlib import Path
import tempfile

import jax
from jax.profiler import ProfileData
import jaxlib

from pallas_kernels.bench import measure


def about() -> dict[str, str]:
    """Names that every result is published with."""
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    return {"device": jax.devices()[0].device_kind, **versions, "date": datetime.date.today().isoformat()}


def ceilings() -> measure.Ceilings | None:
    """What the device was measured to do just now; None on a CPU, whose floors nobody asks for."""
    return None if jax.default_backend() == "cpu" else measure.ceilings()


def busy_seconds(run: Callable[[], object]) -> float | None:
    """How long the device worked during a run, by the profiler; None where it tells nothing, as on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with jax.profiler.trace(folder):
                jax.block_until_ready(run())
        except RuntimeError as error:  # a machine may forbid profiling; the run itself has been timed without
            print(f"no profile: {error}")
            return None
        traces = [ProfileData.from_file(str(path)) for path in Path(folder).rglob("*.xplane.pb")]
        return busy(plane for trace in traces for plane in trace.planes)


def busy(planes: Iterable) -> float | None:
    """Seconds in which at least one stream of a GPU did something; None if no GPU is among a profile's planes."""
    lines = [line for plane in planes if plane.name.startswith("/device:GPU") for line in plane.lines if line.name.startswith("Stream")]
    spans = sorted((event.start_ns, event.start_ns + event.duration_ns) for line in lines for event in line.events)
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e9 if spans else None


def peak_gb() -> float | None:
    """Most device memory that was in use so far, in GB; None where the device does not tell."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in statistics else None
