"""What a model will need of some GPUs, found out without one: memory, launches, collectives, and the least time they take.

The engine's own programs, `decode.read` and `decode.decode_chunk`, are compiled for the shapes that it would dispatch, on abstract
arrays that lie on a mesh as real ones would. Needs the extra `aot`. Knows no weights and no text; prints nothing.
"""

import bisect
from collections.abc import Callable, Iterable
import dataclasses
import re

from gptoss_jax.engine.device import decode
from gptoss_jax.engine.sizes import STEPS
from gptoss_jax.model.cache import PAGE
from gptoss_jax.model.params import Params, param_bytes
from gptoss_jax.plan import abstract, floor
from gptoss_jax.plan.setting import Card, Setting, card
from gptoss_jax.sampling.options import MAX_LOGPROBS
from pallas_kernels import aot
from pallas_kernels.aot.collectives import Collective, collectives
from pallas_kernels.bench.measure import Ceilings

MOST_ROWS = 1 << 16  # of a replica, that are looked at


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      weights, cache: of the tables.
      sampling: what each row's penalties must remember, and its settings.
      other: the rest of the state, page tables, and what the host asks for.
      temporaries: of the program that has most, with those of its results that do not take an argument's place.
      usable: of the GPU's memory.
    """

    weights: int
    cache: int
    sampling: int
    other: int
    temporaries: int
    usable: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.sampling + self.other + self.temporaries

    @property
    def headroom(self) -> int:
        """What is left; negative: what is missing."""
        return self.usable - self.total


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives of one kind and size.

    Attributes:
      kind: such as "all-reduce".
      shapes: of the first one's results on a device, as XLA writes them.
      bytes: of one's results.
      where: "layer", or a part of the program: "embed", "sample"; "" where XLA does not say.
      count: in a dispatch or step, those in branches and inner loops once each; where is "layer": in each layer.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    where: str
    count: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program; bytes are one device's.

    Attributes:
      launches: always made: of a step, or of a prompt's chunk.
      conditional: launches in branches and inner loops, each once: what sampling does only where a row asks for it.
      arguments, predicted: bytes of its arguments, as compiled and from the tables.
      temporaries: bytes, as in `Memory`.
      collectives: the largest first.
      seconds: that compilation took.
    """

    launches: int
    conditional: int
    arguments: int
    predicted: int
    temporaries: int
    collectives: tuple[Collectives, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Floor:
    """The least time of a step or of prompts, by the published figures of the GPU.

    Attributes:
      seconds: all of it.
      memory, compute, interconnect: seconds of it in which this is what takes longest. Latencies are not counted.
      tokens_per_second: of all rows.
      binds: what takes most of the time.
    """

    seconds: float
    memory: float
    compute: float
    interconnect: float
    tokens_per_second: float
    binds: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a `Setting` comes to.

    Attributes:
      most_slots: that would fit at this context; temporaries grow with slots beyond those compiled for.
      most_context: that would fit at these slots, at most the model's own.
      decode, prefill: a step of all slots; a chunk of prompts.
      step, prompts: floors of a step, and of one prompt a replica.
    """

    setting: Setting
    card: Card
    memory: Memory
    most_slots: int
    most_context: int
    decode: Program
    prefill: Program
    step: Floor
    prompts: Floor

    @property
    def fits(self) -> bool:
        return self.memory.headroom >= 0

    def to_dict(self) -> dict:
        """All of it, for JSON."""
        result = dataclasses.asdict(self)
        result["setting"]["config"] = self.setting.config.to_dict()
        result["memory"] |= {"total": self.memory.total, "headroom": self.memory.headroom}
        return result | {"fits": self.fits}


def plan(setting: Setting) -> Plan:
    """Compiles both programs and adds up.

    Raises:
      ValueError: model, mesh and the engine's settings do not go together; before anything is compiled.
      RuntimeError: the extra `aot` is not installed.
    """
    here, engine, partition, gpu = before_compiling(setting), setting.engine(), setting.partition, card(setting.gpu)
    config, sizes, slots = setting.config, engine.sizes, engine.slots
    state = abstract.state(config, sizes, partition)
    orders, blocks = abstract.orders(config, sizes, partition), abstract.blocks(sizes, partition)
    step = _compiled(setting, engine.params, decode.decode_chunk, (state, orders), {"steps": STEPS, "top_logprobs": MAX_LOGPROBS})
    prefill = _compiled(setting, engine.params, decode.read, (state, blocks), {})
    memory = dataclasses.replace(here, temporaries=max(step.temporaries, prefill.temporaries))
    chunk = sizes.read_rows * sizes.page // sizes.replicas
    filled, prompt = (engine.context - 1 if setting.filled is None else setting.filled), setting.prompt or min(chunk, engine.context - 1)
    return Plan(
        setting=setting,
        card=gpu,
        memory=memory,
        most_slots=most_slots(setting, memory),
        most_context=most_context(setting, memory),
        decode=step,
        prefill=prefill,
        step=_floor(floor.stages(config, slots, filled, partition=partition), gpu, slots),
        prompts=_floor(floor.prompt_stages(config, sizes.replicas, prompt, chunk, partition), gpu, sizes.replicas * prompt),
    )


def before_compiling(setting: Setting) -> Memory:
    """What the tables alone say of memory: all but temporaries, which are 0 here. Raises what `plan` does."""
    engine, partition = setting.engine(), setting.partition
    state = abstract.state(setting.config, engine.sizes, partition)
    arguments = abstract.device_bytes((state, abstract.orders(setting.config, engine.sizes, partition)))
    cache, settings = abstract.device_bytes((state.cache.k, state.cache.v)), abstract.device_bytes(state.sampling)
    return Memory(
        weights=param_bytes(setting.config, experts=setting.form, partition=partition),
        cache=cache,
        sampling=settings,
        other=arguments - cache - settings,
        temporaries=0,
        usable=int(card(setting.gpu).memory * setting.memory_fraction),
    )


def most_slots(setting: Setting, memory: Memory) -> int:
    """The most slots at the setting's context. Temporaries count as compiled, and grow with slots beyond those they were compiled for.

    Args:
      memory: of a plan for the setting.
    """

    def fits(rows: int) -> bool:
        other = dataclasses.replace(setting, slots=rows * setting.data)
        temporaries = memory.temporaries * max(1, other.slots / setting.slots)
        return before_compiling(other).total + temporaries <= memory.usable

    rows = range(1, MOST_ROWS + 1)  # of a replica
    return bisect.bisect_left(rows, True, key=lambda count: not fits(count)) * setting.data


def most_context(setting: Setting, memory: Memory) -> int:
    """The most context at the setting's slots, in whole pages and at most the model's own; 0 if none. Temporaries count as compiled.

    Args:
      memory: of a plan for the setting.
    """
    longest, chunk = setting.config.max_position_embeddings, min(setting.chunk, setting.context)

    def fits(pages: int) -> bool:
        other = dataclasses.replace(setting, context=min(longest, pages * PAGE), chunk=chunk, filled=None, prompt=None)
        return before_compiling(other).total + memory.temporaries <= memory.usable

    pages = range(1, -(-longest // PAGE) + 1)
    return min(longest, bisect.bisect_left(pages, True, key=lambda count: not fits(count)) * PAGE)


def _compiled(setting: Setting, params: Params, program: Callable, arguments: tuple, keywords: dict) -> Program:
    mesh = aot.mesh(setting.gpu) if params.partition is None else params.partition.mesh
    report = aot.compile(program, params, setting.config, *arguments, mesh=mesh, keywords=keywords, xla_kernels=False)
    is_step = program is decode.decode_chunk
    made = [name.split(" / ") for name in report.launches]
    made = [parts[1:] for parts in made if len(parts) > 1 and parts[0].endswith(" body")] if is_step else made
    always = sum(len(parts) == 1 for parts in made)
    found = [collective for collective in collectives(report.hlo) if collective.loop or not is_step]
    return Program(
        launches=always,
        conditional=len(made) - always,
        arguments=report.argument_bytes,
        predicted=param_bytes(setting.config, experts=setting.form, partition=params.partition) + abstract.device_bytes(arguments),
        temporaries=report.temporary_bytes + report.output_bytes - report.alias_bytes,
        collectives=_grouped(found, setting.config.num_hidden_layers),
        seconds=report.seconds,
    )


def _grouped(found: Iterable[Collective], layers: int) -> tuple[Collectives, ...]:
    groups: dict[tuple, list[Collective]] = {}
    for collective in found:
        scope = re.search(r"\b(layers|embed|sample|unembed)\b", collective.op_name)
        where = "" if scope is None else "layer" if scope[1] == "layers" else scope[1]
        groups.setdefault((collective.kind, collective.bytes, where), []).append(collective)
    result = [
        Collectives(kind, same[0].shapes, size, where, len(same) / (layers if where == "layer" else 1))
        for (kind, size, where), same in groups.items()
    ]
    return tuple(sorted(result, key=lambda c: -c.bytes))


def _floor(parts: list[floor.Stage], gpu: Card, tokens: int) -> Floor:
    taken = floor.bound(parts, Ceilings(gpu.bandwidth, gpu.flops), gpu.link)
    seconds = sum(taken.values())
    return Floor(seconds=seconds, tokens_per_second=tokens / seconds, binds=max(taken, key=taken.get), **taken)
