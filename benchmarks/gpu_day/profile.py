"""What of a decode step each kernel takes, by the profiler: a JSON line a kernel, and the trace itself for XProf in --out.

python -m benchmarks.gpu_day.profile --preset=gpt-oss-20b --batch=1 --context=1024 --out=DIR
"""

import collections
from collections.abc import Iterable
import json
from pathlib import Path
import re
import shutil
import tempfile

from absl import app, flags
import jax
import jax.numpy as jnp
from jax.profiler import ProfileData

from benchmarks import device, random_model, whole_model
from checkpoints.synthesize import PRESETS
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.device.state import plain_orders

_MOST = 20  # kernels that are told


def shares(planes: Iterable) -> list[dict]:
    """Name, launches, microseconds of a launch and share of the time, of what a GPU's streams did, longest first.

    On a CPU there are no such planes; there XLA's own threads stand in, so that the way is tried.
    """
    planes = list(planes)
    of_gpu = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    begins = "Stream" if of_gpu else "tf_XLA"
    lines = [line for plane in of_gpu or planes for line in plane.lines if line.name.startswith(begins)]
    spent, count = collections.Counter(), collections.Counter()
    for line in lines:
        for event in line.events:
            name = re.sub(r"[._]\d+$", "", event.name)[:100]
            spent[name] += event.duration_ns
            count[name] += 1
    total = sum(spent.values()) or 1
    found = []
    for name, nanoseconds in spent.most_common(_MOST):
        found.append(
            {"kernel": name, "launches": count[name], "microseconds": nanoseconds / count[name] / 1e3, "share": nanoseconds / total}
        )
    return found


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_enum("preset", None, list(PRESETS), "Geometry of a model with random weights.", required=True, flag_values=to)
    flags.DEFINE_integer("batch", 1, "Rows.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("context", 1024, "Tokens that are in the cache.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("steps", 16, "Decode steps.", lower_bound=1, flag_values=to)
    flags.DEFINE_string("out", None, "Folder that the trace is put in.", to)
    whole_model.define_without(to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config, without = PRESETS[given.preset], whole_model.without(given)
    form = random_model.form_here(config, without)
    params = random_model.params(config, form, 0, without)
    cache = random_model.full_cache(config, given.batch, given.context, 4 * given.steps)
    state = random_model.state(config, cache, 4 * given.steps)
    orders = plain_orders(given.batch, given.steps, steps=given.steps, vocab_size=config.vocab_size)
    run = lambda state: jax.block_until_ready(decode.decode_chunk(params, config, state, orders, steps=given.steps))[0]
    state = run(run(state))  # the first compiles, the second may record what is replayed
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(state)
            jnp.zeros(()).block_until_ready()
        traces = sorted(Path(folder).rglob("*.xplane.pb"))
        found = shares(plane for path in traces for plane in ProfileData.from_file(str(path)).planes)
        if given.out:
            for path in traces:
                shutil.copy(path, Path(given.out) / f"{given.preset}-batch-{given.batch}.xplane.pb")
    where = {"benchmark": "profile", "preset": given.preset, "batch": given.batch, "context": given.context, "steps": given.steps}
    for each in found:
        print(json.dumps(where | device.about() | {"without": ",".join(without)} | each), flush=True)
    return int(not found)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
