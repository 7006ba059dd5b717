"""What a dispatch must cost at least, from the geometry alone: the bytes that must move and the operations that must be done.

Weights count as published (experts in MXFP4, 4.25 bits a value; all else bfloat16), whatever form they are held in. Experts count as often
as different ones are expected where every token's choice is uniform. Activations, which could stay on the chip, are free.
"""

import dataclasses

from gptoss_jax.config import Config
from pallas_kernels.bench.measure import Ceilings

_BF16 = 2  # bytes
_MXFP4 = 4.25 / 8


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a forward pass, the sum over all layers; the parts run one after the other."""

    name: str
    bytes: float
    flops: float


def expected_experts(config: Config, tokens: int) -> float:
    """How many different experts of a layer so many tokens are expected to use."""
    E, A = config.num_local_experts, config.num_experts_per_tok
    return E * (1 - (1 - A / E) ** tokens)


def stages(config: Config, batch: int, start: int, tokens: int = 1) -> list[Stage]:
    """Of a forward pass that appends `tokens` to each of `batch` rows that hold `start`, with logits for the last of each row."""
    c, M = config, batch * tokens
    D, F, N, K, H, L = c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.num_hidden_layers
    E, A, V = c.num_local_experts, c.num_experts_per_tok, c.vocab_size
    used = expected_experts(c, M)
    projections = D * (N + 2 * K) * H + N * H * D
    keys = sum(_keys_read(c.window(layer), start, tokens) for layer in range(L))
    pairs = sum(_pairs(c.window(layer), start, tokens) for layer in range(L))
    small = (N + 2 * K) * H + D + 2 * D + N  # biases, norms, sinks
    experts = used * (3 * D * F * _MXFP4 + (2 * F + D) * _BF16)
    return [
        Stage("embedding", M * D * _BF16, 0),
        Stage("projections", L * (projections + small) * _BF16, L * 2 * M * projections),
        Stage("attention", batch * (keys + L * tokens) * 2 * K * H * _BF16, batch * pairs * 4 * N * H),  # reads, and writes new ones
        Stage("router", L * E * (D + 1) * _BF16, L * 2 * M * E * D),
        Stage("experts", L * experts, L * 2 * M * A * 3 * D * F),
        Stage("unembedding", (V + 1) * D * _BF16, 2 * batch * V * D),
    ]


def seconds(parts: list[Stage], ceilings: Ceilings) -> float:
    """The least time of a pass: of each part the larger of what its bytes and its operations take."""
    return sum(max(part.bytes / ceilings.bandwidth, part.flops / ceilings.flops) for part in parts)


def decode_seconds(config: Config, batch: int, context: int, steps: int, ceilings: Ceilings) -> float:
    """Of a step, the mean over `steps` of them, the first of which finds `context` tokens in every row's cache."""
    return sum(seconds(stages(config, batch, context + i), ceilings) for i in range(steps)) / steps


def prefill_seconds(config: Config, batch: int, tokens: int, chunk: int, ceilings: Ceilings) -> float:
    """Of prompts of so many tokens, `chunk` a dispatch, and their first drawn token."""
    starts = range(0, tokens, chunk)
    return sum(seconds(stages(config, batch, start, min(chunk, tokens - start)), ceilings) for start in starts)


def _keys_read(window: int | None, start: int, tokens: int) -> int:
    """Positions of a row that a layer's new queries see, together."""
    return start + tokens if window is None else min(start + tokens, window - 1 + tokens)


def _pairs(window: int | None, start: int, tokens: int) -> int:
    """Pairs of a new query of a row and a key that it sees."""
    if window is None:
        return tokens * start + tokens * (tokens + 1) // 2
    partial = max(0, min(tokens, window - 1 - start))  # queries that see fewer keys than the window holds
    return partial * start + partial * (partial + 1) // 2 + (tokens - partial) * window
