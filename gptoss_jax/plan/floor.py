"""What a dispatch must cost at least, from the geometry alone: bytes that must move, operations that must be done, sums over devices.

Weights count as published (experts in MXFP4, 4.25 bits a value; all else bfloat16), whatever form they are held in. Experts count as often
as different ones are expected where every token's choice is uniform. Activations, which could stay on the chip, are free. On a mesh a
stage is one device's: its heads, its part of the vocabulary, its columns of every expert as `expert_width` widens them, and what it sends
in all-reduces. Knows no devices: ceilings are given.
"""

import dataclasses
import math

from gptoss_jax.config import Config
from gptoss_jax.model.params import expert_width
from gptoss_jax.parallel.sharding import Partition, check_rows
from pallas_kernels.bench.measure import Ceilings

_BF16, _F32 = 2, 4  # bytes
_MXFP4 = 4.25 / 8
RESOURCES = ("memory", "compute", "interconnect")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a forward pass on one device, the sum over all layers; the parts run one after the other.

    Attributes:
      bytes: that its memory must move.
      flops: in bfloat16.
      sent: bytes that it must send to other devices, while it receives as many.
    """

    name: str
    bytes: float
    flops: float
    sent: float = 0


def expected_experts(config: Config, tokens: float) -> float:
    """How many different experts of a layer so many tokens are expected to use."""
    E, A = config.num_local_experts, config.num_experts_per_tok
    return E * (1 - (1 - A / E) ** tokens)


def stages(config: Config, batch: int, start: int, tokens: int = 1, partition: Partition | None = None) -> list[Stage]:
    """Of a forward pass that appends `tokens` to each of `batch` rows that hold `start`, with logits for the last of each row.

    Args:
      batch: rows, of all replicas together.
      partition: how the model lies on a mesh; experts are in tiles there.
    """
    check_rows(partition, batch)
    parts = lambda name: 1 if partition is None else partition.parts(name)
    c, batch = config, batch // parts("batch")
    M, D, H, L, E, A = batch * tokens, c.hidden_size, c.head_dim, c.num_hidden_layers, c.num_local_experts, c.num_experts_per_tok
    N, K, V = c.num_attention_heads // parts("heads"), c.num_key_value_heads // parts("kv_heads"), c.vocab_size // parts("vocab")
    F = expert_width(c, "tiled", partition) // parts("expert_hidden")
    projections = D * (N + 2 * K) * H + N * H * D
    keys = sum(_keys_read(c.window(layer), start, tokens) for layer in range(L))
    pairs = sum(_pairs(c.window(layer), start, tokens) for layer in range(L))
    small = (N + 2 * K) * H + D + 2 * D + N  # biases, norms, sinks
    experts = expected_experts(c, M) * (3 * D * F * _MXFP4 + (2 * F + D) * _BF16)
    result = [
        Stage("embedding", M * D * _BF16 / parts("vocab"), 0),
        Stage("projections", L * (projections + small) * _BF16, L * 2 * M * projections),
        Stage("attention", batch * (keys + L * tokens) * 2 * K * H * _BF16, batch * pairs * 4 * N * H),  # reads, and writes new ones
        Stage("router", L * E * (D + 1) * _BF16, L * 2 * M * E * D),
        Stage("experts", L * experts, L * 2 * M * A * 3 * D * F),
        Stage("unembedding", (V + 1) * D * _BF16, 2 * batch * V * D),
    ]
    sums = _sent(M * D * _BF16, parts("vocab")) + L * sum(_sent(M * D * _F32, parts(name)) for name in ("heads", "expert_hidden"))
    return result + ([Stage("all-reduces", 0, 0, sums)] if sums else [])


def bound(parts: list[Stage], ceilings: Ceilings, link: float = math.inf) -> dict[str, float]:
    """The least time of a pass: of each part the longest that one of `RESOURCES` takes; the sums of these, by resource.

    Args:
      link: bytes a second that a device can send to others, and at the same time receive.
    """
    result = dict.fromkeys(RESOURCES, 0.0)
    for part in parts:
        taken = dict(zip(RESOURCES, (part.bytes / ceilings.bandwidth, part.flops / ceilings.flops, part.sent / link), strict=True))
        slowest = max(taken, key=taken.get)
        result[slowest] += taken[slowest]
    return result


def seconds(parts: list[Stage], ceilings: Ceilings, link: float = math.inf) -> float:
    """The least time of a pass; see `bound`."""
    return sum(bound(parts, ceilings, link).values())


def decode_seconds(config: Config, batch: int, context: int, steps: int, ceilings: Ceilings) -> float:
    """Of a step on one device, the mean over `steps` of them, the first of which finds `context` tokens in every row's cache."""
    return sum(seconds(stages(config, batch, context + i), ceilings) for i in range(steps)) / steps


def prompt_stages(config: Config, batch: int, tokens: int, chunk: int, partition: Partition | None = None) -> list[Stage]:
    """Of all dispatches that prompts of so many tokens take, `chunk` a dispatch, up to their first drawn token."""
    starts = range(0, tokens, chunk)
    return [stage for start in starts for stage in stages(config, batch, start, min(chunk, tokens - start), partition)]


def prefill_seconds(config: Config, batch: int, tokens: int, chunk: int, ceilings: Ceilings) -> float:
    """Of prompts of so many tokens on one device, `chunk` a dispatch, and their first drawn token."""
    return seconds(prompt_stages(config, batch, tokens, chunk), ceilings)


def _sent(size: float, devices: int) -> float:
    """Bytes that each device sends in an all-reduce: it scatters what others add up, and gets their sums (a ring does so, too)."""
    return 2 * size * (devices - 1) / devices


def _keys_read(window: int | None, start: int, tokens: int) -> int:
    """Positions of a row that a layer's new queries see, together."""
    return start + tokens if window is None else min(start + tokens, window - 1 + tokens)


def _pairs(window: int | None, start: int, tokens: int) -> int:
    """Pairs of a new query of a row and a key that it sees."""
    if window is None:
        return tokens * start + tokens * (tokens + 1) // 2
    partial = max(0, min(tokens, window - 1 - start))  # queries that see fewer keys than the window holds
    return partial * start + partial * (partial + 1) // 2 + (tokens - partial) * window
