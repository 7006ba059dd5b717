"""Seconds of loading an Orbax directory against those of the published files of the same checkpoint, on the same devices.

    python -m checkpoints.synthesize --preset=400m --out=DIR
    python -m checkpoints.convert --checkpoint=DIR --out=DIR-orbax
    python -m benchmarks.restore --checkpoint=DIR --orbax=DIR-orbax --mesh=1x8

Alternates between the two, so that whatever else the machine does falls on both, after a load of each that is not timed: the files
are in the page cache, unless they do not fit. CPU devices stand for a mesh's.
"""

import json
import os
import statistics
import time

from absl import app, flags
import jax

from benchmarks import child
from gptoss_jax.weights import loading

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint directory of a published layout.", required=True)
_ORBAX = flags.DEFINE_string("orbax", None, "The same as an Orbax directory.", required=True)
_MESH = flags.DEFINE_string("mesh", "none", "Devices as DATAxMODEL; 'none' loads onto one without a mesh.")
_EXPERTS = flags.DEFINE_enum("experts", "packed", ["auto", "packed", "tiled", "stacked", "split"], "How expert weights are held.")
_RUNS = flags.DEFINE_integer("runs", 7, "Timed loads of each.", lower_bound=1)
_WARM = flags.DEFINE_bool("warm", True, "Load each once before.")


def measure() -> dict:
    mesh = child.cpu_mesh(_MESH.value)
    paths = {"published": _CHECKPOINT.value, "orbax": _ORBAX.value}
    seconds = {name: [] for name in paths}
    for run in range(-1 if _WARM.value else 0, _RUNS.value):
        for name, path in paths.items():
            began = time.perf_counter()
            model = loading.load(path, mesh=mesh, experts=_EXPERTS.value, progress=False)
            taken = time.perf_counter() - began
            gigabytes = sum(x.nbytes for x in jax.tree.leaves(model.params)) / 1e9
            del model
            if run >= 0:
                seconds[name].append(taken)
    ratios = [b / a for a, b in zip(seconds["published"], seconds["orbax"], strict=True)]
    return {
        "parameter_gb": gigabytes,
        **{f"{name}_seconds": statistics.median(taken) for name, taken in seconds.items()},
        **{f"{name}_fastest": min(taken) for name, taken in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_of_fastest": min(seconds["orbax"]) / min(seconds["published"]),
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if child.CHILD.value:
        print(json.dumps(measure()))
        return
    result = child.result("benchmarks.restore", {"JAX_PLATFORMS": "cpu"})
    threads = len(os.sched_getaffinity(0))
    print(f"{_CHECKPOINT.value}: mesh {_MESH.value}, experts {_EXPERTS.value}, {result['parameter_gb']:.2f} GB held, {threads} threads")
    for name in ("published", "orbax"):
        print(f"{name:10}  {result[f'{name}_seconds']:7.2f} s median of {_RUNS.value}, {result[f'{name}_fastest']:.2f} s the fastest")
    print(f"orbax takes {result['ratio']:.2f} times as long (median of pairs), {result['ratio_of_fastest']:.2f} by the fastest")
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
