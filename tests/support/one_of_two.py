"""One of two processes with four devices each, for test_processes: prints what it got as a line of JSON.

python tests/support/one_of_two.py PORT NUMBER FOLDER OTHER      OTHER: a checkpoint that only the second process reads instead of nano
"""

import json
from pathlib import Path
import sys

from absl import flags
import jax
import numpy as np
from on_meshes import answers
from small_model import DIRECTORY

import gptoss_jax as gj
from gptoss_jax.parallel import launch
from gptoss_jax.weights import loading


def refused(call) -> str:
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def tokens(model) -> list[list[int]]:
    return [row[0] for row in answers(model)]


def same(one, other) -> bool:
    """Whether this process' pieces of two models are equal."""
    pieces = [
        [np.asarray(shard.data) for leaf in jax.tree.leaves(model.params) for shard in leaf.addressable_shards] for model in (one, other)
    ]
    return len(pieces[0]) > 100 and all(map(np.array_equal, *pieces))


def main(port: str, number: str, folder: str, other: str) -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    launch.define_flags()
    given = [f"--coordinator_address=localhost:{port}", "--num_processes=2", f"--process_id={number}", "--mesh=2x4"]
    mesh = launch.start(flags.FLAGS(["one_of_two", *given]) and flags.FLAGS)
    load = lambda path, mesh=mesh, **options: gj.load(path, mesh=mesh, progress=False, **options)
    got = {"devices": len(jax.devices()), "local": len(jax.local_devices())}
    got["tiny"] = tokens(load(DIRECTORY, dtype="float32", experts="packed"))
    nano = load("nano", mesh=gj.mesh(1, 8), experts="packed")
    got["nano"] = tokens(nano)
    held = {shard.device.id for leaf in jax.tree.leaves(nano.params) for shard in leaf.addressable_shards}
    got["held"] = sorted(held)
    # No seed is given: the processes must agree on one, and on how many steps a dispatch takes.
    stream = gj.LLM(nano, slots=1, context=256).stream("What is 27 + 58?", gj.Sampling(max_tokens=20))
    got["streamed"] = [piece.text for piece in stream]

    saved = Path(folder, "saved")
    loading.save(nano, saved)
    got["saved"] = same(load(saved, experts="packed"), load("nano", experts="packed"))
    mine = other if number == "1" else "nano"
    got["other checkpoint"] = refused(lambda: load(mine))
    got["no checkpoint"] = refused(lambda: load(folder + "/absent" if number == "1" else "nano"))
    got["other arguments"] = refused(lambda: load("nano", dtype="float32" if number == "1" else "bfloat16"))
    loading.trusted.left_out = lambda *_: ("route",) if number == "1" else ("unembed",)  # as checks on two hosts might find
    got["without"] = load(DIRECTORY, experts="packed").params.without
    print(json.dumps(got))


if __name__ == "__main__":
    main(*sys.argv[1:])
