"""What the benchmarks of whole models on random weights share: right first, then times, beside a floor and a peer.

A point whose logits are not as near to float32 as they should be gets no speed, and the exit status is 1.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import os
from pathlib import Path
import statistics
import subprocess
import tempfile

from absl import flags

from benchmarks import device, random_model
from benchmarks.numerics import Check
from checkpoints.synthesize import PRESETS
from gptoss_jax.config import Config
from gptoss_jax.model.params import ExpertsForm, Params
from pallas_kernels import bench, dispatch
from pallas_kernels.bench.measure import Ceilings

_PEERS = Path(__file__).parent / "peers"
_COLUMNS = {  # of the table: a name in a result -> heading, format
    "tokens_per_second": ("tokens/s", "{:,.1f}"),
    "least": ("least", "{:,.1f}"),
    "most": ("most", "{:,.1f}"),
    "milliseconds": ("ms", "{:.3f}"),
    "floor_milliseconds": ("floor ms", "{:.3f}"),
    "floor_share": ("of floor", "{:.0%}"),
    "outside_device": ("outside", "{:.0%}"),
    "experts": ("experts", "{:.1f}"),
    "uniform_experts": ("uniform", "{:.1f}"),
    "error": ("error", "{:.2g}"),
    "plain_error": ("plain", "{:.2g}"),
    "peer_tokens_per_second": ("peer", "{:,.1f}"),
    "ratio": ("ratio", "{:.2f}"),
    "refused": ("", "{}"),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """Rows, and the tokens that each has: in its cache before a decode step, or in its prompt."""

    batch: int
    length: int


@dataclasses.dataclass(frozen=True)
class Times:
    """What was measured of one point.

    Attributes:
      seconds: of each run.
      parts: steps of a run; a table's milliseconds are those of one.
      tokens: of a run, all rows together.
      busy: seconds of a run in which the device worked, or None where that is not known.
      more: what else is worth a column.
    """

    seconds: Sequence[float]
    parts: int
    tokens: int
    busy: float | None = None
    more: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Which program is checked and timed, and how."""

    name: str
    length: str  # what a point's length is called
    check: Callable[[Config, ExpertsForm, Point], Check]
    measure: Callable[[Params, Config, Point], Times]
    floor: Callable[[Config, Point, Ceilings], float]  # seconds of one part of a run


def define_flags(to: flags.FlagValues) -> None:
    """Adds the flags that these benchmarks share."""
    flags.DEFINE_enum("preset", None, list(PRESETS), "Geometry of a model with random weights.", to)
    flags.DEFINE_integer("repeats", 5, "Runs of each side.", lower_bound=1, flag_values=to)
    flags.DEFINE_enum("experts", "auto", ["auto", "packed", "tiled", "stacked", "split"], "How expert weights are held.", to)
    define_without(to)
    flags.DEFINE_string("peer_python", None, "Interpreter with torch and transformers to measure beside.", to)


def define_without(to: flags.FlagValues) -> None:
    """Adds the flag that `without` reads."""
    flags.DEFINE_list("without", [], "Kernels that are left out, XLA's forms in their places; 'all' is every one.", to)


def without(given: flags.FlagValues) -> tuple[str, ...]:
    """Names of the kernels that are left out."""
    return dispatch.KERNELS if given.without == ["all"] else tuple(given.without)


def run(
    benchmark: Benchmark, preset: str, experts: str, points: Sequence[Point], peer: dict[Point, dict], without: tuple[str, ...] = ()
) -> int:
    """Check and time every point; print a JSON line for each as soon as it is known, then a table. Returns the exit status."""
    config = PRESETS[preset]
    form = random_model.form_here(config, without) if experts == "auto" else experts
    ceilings = device.ceilings()
    where = {"benchmark": benchmark.name, "preset": preset, "experts_form": form, "without": ",".join(without)} | device.about()
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    if ceilings:
        print(f"copies {ceilings.bandwidth / 1e12:.2f} TB/s, multiplies {ceilings.flops / 1e12:.0f} Tflop/s in bfloat16", flush=True)
        where |= {"copy_bytes_per_second": ceilings.bandwidth, "bfloat16_flops": ceilings.flops}
    results = [_checked(benchmark, config, form, point) for point in points]  # before the weights take the memory
    params = None if all("refused" in result for result in results) else random_model.params(config, form, 0, without)
    for point, result in zip(points, results, strict=True):
        if "refused" not in result:
            result |= _timed(benchmark, params, config, point, ceilings)
            result |= _beside(peer.get(point), result.get("tokens_per_second"))
            print(f"batch {point.batch}, {benchmark.length} {point.length}: {_short(result)}")
        print(json.dumps(where | {"batch": point.batch, benchmark.length: point.length} | result), flush=True)
    _print(benchmark, points, results)
    return int(any("refused" in result for result in results))


def run_peer(python: str, script: str, preset: str, arguments: Sequence[str], length: str) -> dict[Point, dict]:
    """Results of a script in peers/, in a process that is over before JAX takes the device's memory.

    Args:
      python: interpreter with torch and transformers.
      arguments: of the script, besides the geometry.
      length: what the script calls a point's length.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(PRESETS[preset].to_dict()), encoding="utf-8")
        command = [python, str(_PEERS / script), f"--config={config}", *arguments]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        print(f"the peer ended with status {done.returncode}; its message is above.")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        print(f"peer: {json.dumps(line)}", flush=True)
    return {Point(line["batch"], line[length]): line for line in lines if "skipped" not in line}


def _checked(benchmark: Benchmark, config: Config, form: ExpertsForm, point: Point) -> dict:
    try:
        check = benchmark.check(config, form, point)
    except Exception as error:  # what one point does must not cost the others
        return _failure(error)
    result = {"error": check.error, "plain_error": check.plain_error}
    return result if check.passed else result | {"refused": f"WRONG: {check}"}


def _timed(benchmark: Benchmark, params: Params, config: Config, point: Point, ceilings: Ceilings | None) -> dict:
    try:
        times = benchmark.measure(params, config, point)
    except Exception as error:
        return _failure(error)
    median = statistics.median(times.seconds)
    result = {"tokens_per_second": times.tokens / median, "milliseconds": median / times.parts * 1e3}
    result |= {"least": times.tokens / max(times.seconds), "most": times.tokens / min(times.seconds)}
    if ceilings:
        floor = benchmark.floor(config, point, ceilings)
        result |= {"floor_milliseconds": floor * 1e3, "floor_share": floor * times.parts / median}
    if times.busy is not None:
        result["outside_device"] = max(0.0, 1 - times.busy / median)
    peak = device.peak_gb()
    return result | times.more | ({} if peak is None else {"peak_gb": peak})


def _beside(line: dict | None, rate: float | None) -> dict:
    if line is None or rate is None:
        return {}
    names = ("tokens_per_second", "attention", "experts", "loop", "chunk", "torch", "transformers", "device", "date")
    return {"ratio": rate / line["tokens_per_second"]} | {f"peer_{name}": line[name] for name in names if name in line}


def _failure(error: Exception) -> dict:
    return {"refused": f"FAILED: {type(error).__name__}: {str(error)[:300]}"}


def _short(result: dict) -> str:
    return result.get("refused") or f"{result['tokens_per_second']:,.1f} tokens/s"


def _print(benchmark: Benchmark, points: Sequence[Point], results: Sequence[dict]) -> None:
    names = [name for name in _COLUMNS if any(result.get(name) is not None for result in results)]
    rows = []
    for point, result in zip(points, results, strict=True):
        cells = ["" if result.get(name) is None else _COLUMNS[name][1].format(result[name]) for name in names]
        rows.append([str(point.batch), str(point.length), *cells])
    print("\n" + bench.table(["batch", benchmark.length, *(_COLUMNS[name][0] for name in names)], rows) + "\n")
