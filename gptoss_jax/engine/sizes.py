"""How large an engine is: its slots, its pages, and the shapes of the few programs that follow from them."""

import dataclasses
import numbers

from gptoss_jax.config import Config
from gptoss_jax.model.cache import PAGE, ring_blocks
from gptoss_jax.quoting import quoted

STEPS = 32  # most decode steps a dispatch
CHUNK, CHUNK_CPU = 2048, 128  # prompt tokens a dispatch, all of which take their time even if there are fewer


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of an engine; `sizes` makes them.

    Attributes:
      slots: rows that decode side by side.
      context: most tokens of a prompt and its continuation.
      page: tokens a page, and a row of prompts that are read.
      replicas: of the weights; slots, rows and pages are dealt out to them in equal parts, in order.
      read_rows: rows of prompts a dispatch.
      blocks: pages of full layers that a row may have.
      read_ring, decode_ring: pages of sliding layers that a row may have while it is read, and while it decodes.
      full_pages, ring_pages: of a full and of a sliding layer.
    """

    slots: int
    context: int
    page: int
    replicas: int
    read_rows: int
    blocks: int
    read_ring: int
    decode_ring: int
    full_pages: int
    ring_pages: int


def sizes(
    config: Config,
    *,
    slots: int,
    context: int,
    chunk: int = CHUNK,
    cache_tokens: int | None = None,
    page: int = PAGE,
    replicas: int = 1,
) -> Sizes:
    """The sizes of an engine.

    Args:
      config: of the model.
      slots: most requests that decode side by side, a multiple of `replicas`.
      context: most tokens of a prompt and its continuation.
      chunk: most prompt tokens that a replica reads at a time, rounded up to whole pages.
      cache_tokens: tokens that the cache holds, all requests and kept prefixes together; None for `slots` full contexts. It must have
        room for one full context a replica. Where it runs out, requests are computed again later.
      page: tokens a page.
      replicas: of the weights, on a mesh.

    Raises:
      ValueError: a number is out of its range.
    """
    slots, context, chunk, page = (_count(*one) for one in (("slots", slots), ("context", context), ("chunk", chunk), ("page", page)))
    tokens = slots * context if cache_tokens is None else _count("cache_tokens", cache_tokens)
    if context > config.max_position_embeddings:
        raise ValueError(
            f"context must be at most the model's {config.max_position_embeddings:,} positions; got {quoted(context)}; pass a smaller one."
        )
    if slots % replicas:
        nearest = quoted(-(-slots // replicas) * replicas)
        raise ValueError(f"slots must be a multiple of the mesh's data axis ({replicas}); got {quoted(slots)}; pass slots={nearest}.")
    if tokens < replicas * context:
        raise ValueError(
            f"cache_tokens must hold at least one full context ({context:,} tokens) for each of {replicas} replicas; got {tokens:,}; "
            f"pass at least {replicas * context:,}, or a smaller context."
        )
    rows = -(-min(chunk, context) // page)
    blocks = -(-context // page)
    full = max(blocks, -(-tokens // (page * replicas)))
    if cache_tokens is None:
        full = slots // replicas * blocks
    decode_ring, read_ring = (min(blocks, ring_blocks(config, new, page)) for new in (2 * STEPS, rows * page))
    # Rows that decode, what has been read ahead of them, what is being read, and as much again for prefixes.
    ring = min(full, 2 * (slots // replicas + ahead(slots, replicas)) * decode_ring + read_ring + rows)
    return Sizes(
        slots=slots,
        context=context,
        page=page,
        replicas=replicas,
        read_rows=rows * replicas,
        blocks=blocks,
        read_ring=read_ring,
        decode_ring=decode_ring,
        full_pages=full * replicas,
        ring_pages=max(ring, read_ring) * replicas,
    )


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer; got {quoted(value)}.")
    if value >= 2**63:
        raise ValueError(f"{name} must be below 2**63; got {quoted(value)}; pass a smaller one.")
    return int(value)


def ahead(slots: int, replicas: int) -> int:
    """Requests whose prompts are read before a slot is free for them, of each replica."""
    return max(2, slots // replicas // 4)
