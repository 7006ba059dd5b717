"""The shards of a finished batch job as one file, in the order of the input, as one process alone would have written it. An entry point.

    python -m gptoss_jax.batch.merge --output=results.jsonl

Refuses to write anything unless all shards are there and finished, of one input, and have every result once. Leaves them where they are.
Their lines may have any length, for it was a job that wrote them.
"""

from pathlib import Path
import sys

from absl import app, flags

from gptoss_jax.batch import files, shards


def define_flags(to: flags.FlagValues) -> None:
    flags.DEFINE_string("output", None, "File of the whole job, as its processes were given it.", flag_values=to)
    flags.DEFINE_bool("overwrite", False, "Write it anew where there is one.", flag_values=to)
    flags.DEFINE_bool("private", False, "Give it the mode 0600, whatever it had.", flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        if not given.output:
            raise ValueError("--output must name the file of the whole job; give --output=results.jsonl.")
        output = Path(given.output)
        if output.exists() and not given.overwrite:
            raise ValueError(f"{output} is there already; remove it, or pass --overwrite.")
        count = 0
        with files.written_whole(output, private=given.private) as file:
            for line in shards.merged(output):
                file.write(line)
                count += 1
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{output}: {count:,} results")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
