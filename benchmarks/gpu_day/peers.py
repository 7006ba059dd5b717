"""transformers alone, on the same geometry and device: what benchmarks.decode and benchmarks.prefill measure beside themselves.

    python -m benchmarks.gpu_day.peers --preset=gpt-oss-20b --kind=decode --peer_python=python --batch=1,16 --prompt=1024 --new=32

In a process that does not touch the device itself, so that all of its memory is the peer's. A JSON line each.
"""

import json

from absl import app, flags

from benchmarks import whole_model
from checkpoints.synthesize import PRESETS


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_enum("preset", None, list(PRESETS), "Geometry of a model with random weights.", required=True, flag_values=to)
    flags.DEFINE_enum("kind", "decode", ["decode", "prefill"], "What is timed.", to)
    flags.DEFINE_string("peer_python", None, "Interpreter with torch and transformers.", required=True, flag_values=to)
    flags.DEFINE_string("batch", "1", "Numbers of rows.", to)
    flags.DEFINE_string("prompt", "1024", "Tokens of each prompt.", to)
    flags.DEFINE_integer("new", 32, "Decode steps.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("repeats", 2, "Runs.", lower_bound=1, flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    arguments = [f"--batch={given.batch}", f"--prompt={given.prompt}", f"--repeats={given.repeats}"]
    arguments += [f"--new={given.new}"] if given.kind == "decode" else []
    found = whole_model.run_peer(given.peer_python, f"transformers_{given.kind}.py", given.preset, arguments, "prompt")
    for line in found.values():
        print(json.dumps({"benchmark": f"transformers {given.kind}", "preset": given.preset} | line), flush=True)
    return int(not found)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
