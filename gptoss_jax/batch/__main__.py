"""Batch jobs: a file of requests in, a file of results in the same order out. An entry point: reads flags and the environment, prints.

    python -m gptoss_jax.batch --input=requests.jsonl --output=results.jsonl --checkpoint=gpt-oss-20b/ --slots=64
    srun --ntasks=8 --gpus-per-task=1 python -m gptoss_jax.batch ... && python -m gptoss_jax.batch.merge --output=results.jsonl

Requests are OpenAI's batch lines or plain ones, see `lines`. After any interruption the same command does the rest. Exit status: 0
all results are written, those of refused requests too; 75 a signal ended it, start it again; 1 it cannot go on, and says why.
"""

from collections.abc import Mapping
import contextlib
import logging as standard_logging
import os
from pathlib import Path
import sys

from absl import app, flags, logging
import jax

from gptoss_jax import compile_cache, model_flags
from gptoss_jax.batch import shards, source
from gptoss_jax.batch.draining import UNFINISHED, Draining
from gptoss_jax.batch.files import replaced
from gptoss_jax.batch.job import Job
from gptoss_jax.batch.progress import Progress
from gptoss_jax.batch.shards import Shard
from gptoss_jax.llm import LLM
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.parallel import launch
from gptoss_jax.quoting import said
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.weights.loading import load

_MATTERS = (  # to what the results are, to the last bit
    "checkpoint", "context", "slots", "chunk", "mesh", "dtype", "cache_dtype", "experts", "kernels", "max_tokens", "reasoning_effort",
    "seed", "max_line_bytes",
)  # fmt: skip


def define_flags(to: flags.FlagValues) -> None:
    text, whole = flags.DEFINE_string, flags.DEFINE_integer
    text("input", None, "File of requests, one JSON object a line; .gz and .zst are read as such.", to)
    text("output", None, "File for the results; .gz and .zst are written as such.", to)
    flags.DEFINE_bool("overwrite", False, "Do a job whose output is there all over again.", to)
    flags.DEFINE_bool("private", False, "Give the output and what is written on the way to it the mode 0600.", to)
    whole("max_line_bytes", source.MAX_LINE_BYTES, "A longer line is refused, and never held as a whole.", lower_bound=1, flag_values=to)
    whole("seed", 0, "Requests without a seed get one that comes from this and their id.", lower_bound=0, flag_values=to)
    whole("shard_index", None, "Which part of the input this process does, from 0; default the launcher's number.", 0, flag_values=to)
    whole("shard_count", None, "How many parts there are; default the launcher's number, 1 for the whole input.", 1, flag_values=to)
    flags.DEFINE_float("drain_seconds", 5, "What runs gets to end, after a signal.", lower_bound=0, flag_values=to)
    flags.DEFINE_float("log_seconds", 30, "Between lines of progress, where there is no terminal.", lower_bound=0.1, flag_values=to)
    model_flags.define_flags(to)
    launch.define_flags(to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    standard_logging.getLogger("jax").setLevel(standard_logging.WARNING)  # at INFO it tells which accelerators it did not find
    try:
        with Draining(given.drain_seconds) as draining:
            return _work(given, draining)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _work(given: flags.FlagValues, draining: Draining) -> int:
    """The whole job; everything that can be refused is refused before the weights are read."""
    files = [_path(given, name) for name in ("input", "output")]
    if files[0].exists() and files[1].exists() and files[0].samefile(files[1]):
        raise ValueError(f"--output must be another file than --input; both are {files[0]}; give it another name.")
    shard, defaults = _shard(given, os.environ), _defaults(given)
    output = shard.path(files[1])
    journal = shards.partial(output)
    if os.path.realpath(journal) in (os.path.realpath(files[0]), str(replaced(output))):
        raise ValueError(f"--input and --output must be other files than {journal}, which keeps the results on the way; give another name.")
    if output.exists() and not given.overwrite and not journal.exists():
        _say(f"{output} is there already, nothing is done; pass --overwrite to do it again.")
        return 0
    settings = {name: getattr(given, name) for name in _MATTERS} | {"temperature": defaults.temperature}
    given_lines = source.survey(files[0], given.max_line_bytes)
    with Job(given_lines, files[1], settings, defaults, shard, private=given.private) as job:
        if output.exists() and not given.overwrite:
            return _left_over(job)
        if job.journal.cut:
            logging.warning("%d bytes at the end of %s were torn; what they were is done again", job.journal.cut, job.journal.path)
        if job.journal.totals.done:
            logging.info("%s goes on: %d of its requests are done", output, job.journal.totals.done)
        summary = _answer(job, given, draining) if job.journal.missing else "all requests were done"
        if draining.asked and job.journal.missing:
            _say(f"stopped: {summary}; start the same command again to go on")
            return UNFINISHED
        job.finish()
    _say(f"{output}: {summary}")
    return 0


def _say(text: str) -> None:
    """Prints a sentence; where standard output cannot be written it is lost, and the job is what it was."""
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:
        logging.warning("%s (standard output cannot be written: %s)", text, said(error))
        with contextlib.suppress(OSError, ValueError):  # or the interpreter would try once more, and give its exit status for it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _on_terminal() -> bool:
    """Whether standard error is a terminal; it may be closed."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, OSError, ValueError):
        return False


def _answer(job: Job, given: flags.FlagValues, draining: Draining) -> str:
    """Answers what is missing; returns what there is to say about it."""
    compile_cache.enable(given.compilation_cache)
    llm = _llm(given, launch.start(given))
    log = None if _on_terminal() else logging.info
    totals, stats = job.journal.totals, llm.engine.stats
    requests = totals.done + job.journal.missing
    with Progress(totals, requests, generated=lambda: stats.generated, log=log, seconds=given.log_seconds) as progress:
        job.run(llm, draining)
    return progress.summary(stats.occupancy)


def _llm(given: flags.FlagValues, mesh: jax.sharding.Mesh | None) -> LLM:
    shown = _on_terminal()
    model = load(given.checkpoint, mesh=mesh, **model_flags.of_load(given), progress=shown)
    llm = LLM(model, **model_flags.of_llm(given))
    llm.prepare(progress=shown)
    return llm


def _left_over(job: Job) -> int:
    """There are an output and a journal: a job that ended between writing the one and removing the other, or one with --overwrite."""
    if job.journal.missing and job.journal.totals.done:
        raise ValueError(
            f"{job.path} is there already, and {job.journal.path.name} of a job that was to overwrite it; pass --overwrite to go on with "
            "that, or remove one of the two."
        )
    job.journal.remove()
    _say(f"{job.path} is there already, nothing is done; pass --overwrite to do it again.")
    return 0


def _path(given: flags.FlagValues, name: str) -> Path:
    value = getattr(given, name)
    if not value:
        raise ValueError(f"--{name} must name a file; give --input=requests.jsonl --output=results.jsonl.")
    if value == "-":
        raise ValueError(f"--{name} must be a file; - is a stream, with which no job can go on after an interruption; save it first.")
    path = Path(value)
    if path.is_dir():
        raise ValueError(f"--{name} must be a file; {value} is a folder; name a file in it.")
    if path.exists() and not path.is_file():
        raise ValueError(f"--{name} must be a file; {value} is a device or a stream, with which no job can go on; save it first.")
    return path


def _shard(given: flags.FlagValues, environment: Mapping[str, str]) -> Shard:
    if given.distributed or given.coordinator_address or given.num_processes is not None or given.process_id is not None:
        raise ValueError(
            "a batch job runs in one process for each mesh; --distributed is for several, which would have to answer the same requests in "
            "step; give each a shard and devices of its own: start them with srun or mpirun, or with --shard_index and --shard_count."
        )
    if (given.shard_index is None) != (given.shard_count is None) and given.shard_count != 1:
        raise ValueError("--shard_index and --shard_count go together; give both, or neither.")
    if given.shard_count is not None:
        return Shard(given.shard_index or 0, given.shard_count)
    found = shards.from_launcher(environment)
    if found is None:
        return Shard()
    logging.info("shard %d of %d, as %s says; --shard_count=1 would do the whole input", found[0].index, found[0].count, found[1])
    return found[0]


def _defaults(given: flags.FlagValues) -> Defaults:
    if given.mesh is not None:
        launch.shape(given.mesh)
    temperature = model_flags.temperature(given)
    Sampling(temperature=temperature, max_tokens=given.max_tokens, seed=given.seed)
    return Defaults(temperature, given.max_tokens, given.reasoning_effort, given.seed)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    for shared in (model_flags, launch):  # for --help, which shows a program's own flags alone
        flags.adopt_module_key_flags(shared)
    app.run(main)
