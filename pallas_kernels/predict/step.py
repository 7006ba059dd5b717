"""A whole decode step, added up from predicted launches: eight a layer, the last product, and XLA's small kernels by one rule."""

from collections.abc import Iterable
import dataclasses

from pallas_kernels.predict import chip as chips
from pallas_kernels.predict.table import Row

LAYERS = {"20b": 24, "120b": 36}
EXPERTS = {"20b": 32, "120b": 128}
BESIDE = {"20b": 9, "120b": 12}  # launches of a step at one row that are no layer's: 201 and 300 in all, by `pallas_kernels.aot`
_D = 2880


@dataclasses.dataclass(frozen=True)
class Step:
    """Predicted seconds of a step, and those in which its bytes can move at all; `parts`: both by launch, of all layers together."""

    seconds: float
    floor: float
    parts: dict[str, tuple[float, float]]

    @property
    def ratio(self) -> float:
        """How many times the floor it takes."""
        return self.seconds / self.floor


def small(chip: chips.Chip, moved: float) -> float:
    """Seconds of one of XLA's small kernels: a launch, a block's start and end, a load, a store, and its bytes."""
    return chip.launch + (2 * chip.start + chip.memory_latency + chip.l2_latency) * chip.cycle + moved / chip.bandwidth


def step(rows: Iterable[Row], model: str, batch: int, gpu: str, context: str = "8k") -> Step:
    """A decode step of one of `LAYERS` at a batch and context.

    Raises:
      ValueError: a launch was not predicted.
    """
    chip, layers = chips.CHIPS[gpu], LAYERS[model]
    known: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.gpu == gpu:
            known.setdefault((row.op, row.case), []).append(row)
    tokens = f"{batch} token{'s' if batch > 1 else ''}"
    wanted = {
        "project_qkv": ("projection.qkv", f"20b, {tokens}", layers),
        "attention, full": ("attention.decode", f"20b, batch {batch}, {context} context", layers // 2),
        "attention, window": ("attention.decode", f"20b, batch {batch}, 8k context, window 128", layers // 2),
        "project_out": ("projection.out", f"20b, {tokens}", layers),
        "route": ("routing.route", f"{model}, {tokens}", layers),
        "moe_gate_up": ("moe.gate_up", f"{model}, {tokens}", layers),
        "moe_down": ("moe.down", f"{model}, {tokens}", layers),
        "add_norm": ("norm.add_norm", f"20b, {tokens}", layers),
        "unembed": ("projection.unembed", f"20b, {tokens}", 1),
    }
    if absent := [name for name, (op, case, _) in wanted.items() if (op, case) not in known]:
        made = f"python -m pallas_kernels.predict --write --gpu={gpu} predicts them"
        raise ValueError(f"a step needs every launch predicted; {', '.join(absent)} of {model} at batch {batch} on {gpu} are not; {made}.")
    parts = {}
    for name, (op, case, count) in wanted.items():
        found = known[op, case]
        parts[name] = (count * sum(row.seconds for row in found), count * sum(row.floor for row in found))
    if found := known.get(("routing.router", f"{model}, {tokens}")):
        parts["router"] = (layers * sum(row.seconds for row in found), layers * sum(row.floor for row in found))
    else:
        weights = 4 * EXPERTS[model] * _D
        parts["router, by XLA"] = (layers * small(chip, weights), layers * weights / chip.bandwidth)
    parts["others, by XLA"] = (BESIDE[model] * small(chip, 0), 0.0)
    return Step(sum(s for s, _ in parts.values()), sum(f for _, f in parts.values()), parts)
