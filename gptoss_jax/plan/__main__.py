"""A plan before renting GPUs: what a model will need of some H100s or H200s, and what they could do at best. An entry point.

    python -m gptoss_jax.plan --model=gpt-oss-120b --gpu=h100 --num_gpus=4 --slots=64 --context=32768
    python -m gptoss_jax.plan --model=gpt-oss-120b --gpu=h200 --sweep=1,2,4,8 --plot=plan.png

The real programs are compiled for GPUs that are not there (extra `aot`); no weights are read. Nothing is timed: floors are what the
published figures of the GPU allow. GB are 10^9 bytes.
"""

import json
import sys

from absl import app, flags
import jax

from gptoss_jax.engine.sizes import CHUNK
from gptoss_jax.plan import floor
from gptoss_jax.plan.planning import Collectives, Floor, Plan, Program, before_compiling, plan
from gptoss_jax.plan.setting import Setting, read_config
from pallas_kernels import aot
from pallas_kernels.bench import table

_PARTS = {  # of a device's memory: field -> heading
    "weights": "weights",
    "cache": "KV cache",
    "sampling": "sampling state",
    "other": "other state",
    "temporaries": "temporaries",
}


def report(plan: Plan) -> str:
    """What is printed of one plan."""
    s, memory = plan.setting, plan.memory
    gpus = f"{s.num_gpus} x {s.gpu.upper()}" + (f" ({s.data} replicas of {s.num_gpus // s.data})" if s.data > 1 else "")
    verdict = "It fits." if plan.fits else f"It does not fit: {_gb(-memory.headroom)} GB are missing."
    least = f"Most that would fit: {plan.most_slots:,} slots of {s.context:,} tokens, or {s.slots:,} slots of {plan.most_context:,} tokens."
    held = [[heading, _gb(getattr(memory, name))] for name, heading in _PARTS.items()]
    held += [["total", _gb(memory.total)], [f"usable: {s.memory_fraction:g} of {_gb(plan.card.memory)}", _gb(memory.usable)]]
    programs = [_program("decode step", plan.decode), _program("chunk of prompts", plan.prefill)]
    floors = [_floor("decode step", plan.step), _floor(f"a prompt of {s.prompt or min(s.chunk, s.context):,} tokens", plan.prompts)]
    header = ["program", "launches", "in branches", "arguments GB", "by the tables", "differs", "temporaries GB", "compiled in s"]
    return "\n".join(
        [
            f"{s.slots} slots of {s.context:,} tokens, prompts in chunks of {min(s.chunk, s.context):,}, on {gpus}\n",
            table(["one GPU holds", "GB"], [*held, ["headroom", _gb(memory.headroom)]]),
            f"{verdict} {least}\n",
            table(header, programs),
            *_collectives("decode step", plan.decode),
            *_collectives("chunk of prompts", plan.prefill),
            "",
            table(["floor", "ms", "tokens/s", *(f"{name} ms" for name in floor.RESOURCES), "binds"], floors),
            f"at {plan.card.bandwidth / 1e12:.2f} TB/s of memory, {plan.card.flops / 1e12:.0f} Tflop/s and {plan.card.link / 1e9:.0f} GB/s "
            "each way between GPUs, where an all-reduce of n bytes",
            "sends 2 (p-1)/p n from each of p; latencies, of which every launch and collective has one, are not counted",
        ]
    )


def comparison(plans: list[Plan]) -> str:
    """What is printed of plans for several numbers of GPUs."""
    header = ["GPUs", *_PARTS.values(), "total GB", "headroom", "fits", "most slots", "most context", "launches"]
    header += ["step ms", "tokens/s", "binds", "prompt tokens/s", "binds"]
    rows = []
    for p in plans:
        held = [_gb(getattr(p.memory, name)) for name in _PARTS] + [_gb(p.memory.total), _gb(p.memory.headroom), "yes" if p.fits else "no"]
        most = [f"{p.most_slots:,}", f"{p.most_context:,}", f"{p.decode.launches:,}"]
        speed = [f"{p.step.seconds * 1e3:.2f}", f"{p.step.tokens_per_second:,.0f}", p.step.binds]
        rows.append([str(p.setting.num_gpus), *held, *most, *speed, f"{p.prompts.tokens_per_second:,.0f}", p.prompts.binds])
    return table(header, rows)


def plot(plans: list[Plan], path: str) -> None:
    """Writes a picture: memory of a device against what the card has, and the floors of decoding.

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places, names = range(len(plans)), [str(p.setting.num_gpus) for p in plans]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    bottom = [0.0] * len(plans)
    for name, heading in _PARTS.items():
        heights = [getattr(p.memory, name) / 1e9 for p in plans]
        left.bar(places, heights, bottom=bottom, label=heading)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    first = plans[0]
    left.axhline(first.card.memory / 1e9, color="black", label=first.setting.gpu.upper())
    left.axhline(first.memory.usable / 1e9, color="black", linestyle="--", label=f"{first.setting.memory_fraction:g} of it")
    left.set(xlabel="GPUs", ylabel="GB of each", title="memory", xticks=places, xticklabels=names)
    left.legend(fontsize="small")
    right.plot(places, [p.step.tokens_per_second for p in plans], marker="o")
    title = f"decoding at best: {first.setting.slots} slots of {first.setting.context:,} tokens"
    right.set(xlabel="GPUs", ylabel="tokens/s", title=title, xticks=places, xticklabels=names)
    right.set_ylim(bottom=0)
    figure.savefig(path, dpi=150)


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_string("model", "gpt-oss-20b", "gpt-oss-20b, gpt-oss-120b, or a config.json or the directory that holds it.", to)
    flags.DEFINE_string("gpu", "h100", f"One of {', '.join(aot.GPUS)}: the SXM cards.", to)
    flags.DEFINE_integer("num_gpus", 1, "GPUs of one host.", flag_values=to)
    flags.DEFINE_list("sweep", None, "Several numbers of GPUs instead, such as 1,2,4,8: a line of a table for each.", to)
    flags.DEFINE_integer("data", 1, "Replicas of the weights; each is spread over num_gpus / data GPUs.", flag_values=to)
    flags.DEFINE_integer("slots", 64, "Requests side by side.", flag_values=to)
    flags.DEFINE_integer("context", 8192, "Most tokens of a prompt and its continuation.", flag_values=to)
    flags.DEFINE_integer("chunk", CHUNK, "Most prompt tokens a dispatch, of each replica.", flag_values=to)
    flags.DEFINE_integer("filled", None, "Tokens in every slot's cache at the floor of a step [context - 1].", flag_values=to)
    flags.DEFINE_integer("prompt", None, "Tokens of a prompt, at its floor [one chunk].", flag_values=to)
    fraction = "Part of a GPU's memory that JAX may use: XLA_PYTHON_CLIENT_MEM_FRACTION, which is 0.75 if not set."
    flags.DEFINE_float("memory_fraction", 0.9, fraction, flag_values=to)
    flags.DEFINE_bool("json", False, "JSON on standard output and nothing else: an object, or a list for --sweep.", to)
    flags.DEFINE_string("plot", None, "PNG file for a picture of memory and floors (needs matplotlib).", to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    jax.config.update("jax_platforms", "cpu")  # a GPU that is there is not needed
    try:
        settings = _settings(given)
        if reason := aot.unavailable():
            return reason
        if given.plot:
            _check_matplotlib()
        expected = [before_compiling(setting) for setting in settings]
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise app.UsageError(str(error)) from None
    plans = []
    for setting, memory in zip(settings, expected, strict=True):
        of = f"{given.model} on {setting.num_gpus} x {setting.gpu.upper()}"
        held = f"{_gb(memory.weights)} GB of weights and {_gb(memory.total - memory.weights)} GB of cache and state"
        print(f"{of}: each holds {held}; compiling its programs ...", file=sys.stderr, flush=True)
        plans.append(plan(setting))
    if given.plot:
        plot(plans, given.plot)
    if given.json:
        records = [{"model": given.model} | p.to_dict() for p in plans]
        print(json.dumps(records if given.sweep else records[0], indent=2))
    elif given.sweep:
        print(f"{given.model} on {given.gpu.upper()}s, {given.slots} slots of {given.context:,} tokens; a GPU holds, in GB:")
        print(comparison(plans))
    else:
        print(f"{given.model}: {report(plans[0])}")
    return 0


def _settings(given: flags.FlagValues) -> list[Setting]:
    try:
        counts = [given.num_gpus] if given.sweep is None else [int(count) for count in given.sweep]
    except ValueError:
        raise ValueError(f"--sweep must be numbers of GPUs; got {','.join(given.sweep)}; write --sweep=1,2,4,8.") from None
    if not counts:
        raise ValueError("--sweep must name at least one number of GPUs; got none; write --sweep=1,2,4,8.")
    names = ("gpu", "data", "slots", "context", "chunk", "filled", "prompt", "memory_fraction")
    others = {name: getattr(given, name) for name in names}
    config = read_config(given.model)
    return [Setting(config=config, num_gpus=count, **others) for count in counts]


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("--plot needs matplotlib, which is not installed: pip install 'gptoss-jax[notebooks]'.") from None


def _program(name: str, program: Program) -> list[str]:
    differs = program.arguments / program.predicted - 1
    memory = [_gb(program.arguments), _gb(program.predicted), f"{differs:+.2%}", _gb(program.temporaries)]
    return [name, f"{program.launches:,}", f"{program.conditional:,}", *memory, f"{program.seconds:.0f}"]


def _collectives(name: str, program: Program) -> list[str]:
    """A sentence about each kind and size of the collectives that a program makes."""
    return [f"{name}: {_sentence(c)}" for c in program.collectives]


def _sentence(c: Collectives) -> str:
    where = "a layer" if c.where == "layer" else f"in {c.where}" if c.where else "made by XLA"
    size = f"{c.bytes / 1e6:,.3g} MB" if c.bytes >= 1e4 else f"{c.bytes:,} bytes"
    return f"{c.count:g} {c.kind} {where} of {' and '.join(c.shapes)} ({size})"


def _floor(name: str, least: Floor) -> list[str]:
    parts = [f"{getattr(least, resource) * 1e3:,.2f}" for resource in floor.RESOURCES]
    return [name, f"{least.seconds * 1e3:,.2f}", f"{least.tokens_per_second:,.0f}", *parts, least.binds]


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f}"


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
