"""Host memory and seconds of loading a checkpoint onto a mesh of CPU devices that stand for GPUs.

    python -m checkpoints.synthesize --preset=gpt-oss-20b --out=DIR
    python -m benchmarks.load_mesh --checkpoint=DIR --mesh=1x8

Runs in a process of its own, so that its peak resident memory is that of loading alone. CPU devices hold their parts in the host's
memory, so the peak holds all parameters too, and on a mesh the zeros that it widens experts with.
"""

import json
import os
import time

from absl import app, flags
import jax

from benchmarks import child
from gptoss_jax.weights import loading, locate, safetensors

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint directory.", required=True)
_MESH = flags.DEFINE_string("mesh", "1x8", "Devices as DATAxMODEL; 'none' loads onto one without a mesh.")
_EXPERTS = flags.DEFINE_enum("experts", "packed", ["auto", "packed", "tiled", "stacked", "split"], "How expert weights are held.")


def measure() -> dict:
    mesh = child.cpu_mesh(_MESH.value)
    began = time.perf_counter()
    loaded = loading.load(_CHECKPOINT.value, mesh=mesh, experts=_EXPERTS.value, progress=False)
    seconds = time.perf_counter() - began
    held = [shard.data.nbytes for array in jax.tree.leaves(loaded.params) for shard in array.addressable_shards]
    stored = sum(tensor.nbytes for tensor in safetensors.scan(locate.checkpoint(_CHECKPOINT.value)).values())
    return {
        "checkpoint_gb": stored / 1e9,
        "held_gb": sum(held) / 1e9,
        "peak_gb": child.peak_gb(),
        "seconds": seconds,
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if child.CHILD.value:
        print(json.dumps(measure()))
        return
    result = child.result("benchmarks.load_mesh", {"JAX_PLATFORMS": "cpu"})
    print(f"{_CHECKPOINT.value}: mesh {_MESH.value}, experts {_EXPERTS.value}, {len(os.sched_getaffinity(0))} threads")
    print(f"weights          {result['checkpoint_gb']:6.2f} GB in files, {result['held_gb']:.2f} GB on devices")
    print(f"resident memory  {result['peak_gb']:6.2f} GB at most, {result['peak_gb'] / result['checkpoint_gb']:.2f} times the files")
    print(f"load             {result['seconds']:6.1f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
