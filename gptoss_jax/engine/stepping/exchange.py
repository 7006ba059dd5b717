"""What goes to the device with decode steps and what comes back of them, slot by slot."""

from collections.abc import Iterable
import dataclasses
import math
from typing import Any

import numpy as np

from gptoss_jax.engine.device.state import Chunk
from gptoss_jax.engine.requests import FinishReason, Piece
from gptoss_jax.engine.scheduling.live import Live, Rows
from gptoss_jax.engine.sizes import STEPS
from gptoss_jax.sampling.reported import Processed, Sampled


@dataclasses.dataclass(frozen=True)
class Routes:
    """The experts of a dispatch of prompts [P, T, L, A], on the device until they are fetched, and whose its rows are."""

    experts: Any
    rows: Rows


@dataclasses.dataclass
class Asked:
    """Decode steps that were asked for: whose they are is written down here, so that no token reaches a slot's next owner."""

    chunk: Chunk
    owners: dict[int, Live]
    limit: int
    began: float
    crowded: bool  # somebody waited for a slot
    single: bool  # rows stand still until the host has looked
    resumed: Any  # [slots] bool rows that stood still and went on with these steps
    reads: list[Routes]  # of prompts that were read before these steps, and are looked at with them


def orders(running: dict[int, Live], limit: int, slots: int, *, dropped: list[int], held: list[int], allowed: np.ndarray) -> dict[str, Any]:
    """What `Programs.draw` is told of the slots, by name; see `state.Orders`.

    Args:
      running: who has a slot and something to do. Guided ones that wait do so no longer: their masks are in `allowed`.
      limit: steps to come.
      slots: how many there are.
      dropped: slots that the device still believes to be at work.
      held: slots whose owners stand still.
      allowed: [slots, ceil(V / 32)] uint32: what guided ones may draw, until they are asked again.
    """
    flags = {name: np.zeros(slots, bool) for name in ("dropped", "held", "resumed", "single", "masked")}
    flags["dropped"][dropped] = flags["held"][held] = True
    forced = None
    for slot, live in running.items():
        replaying = live.replaying
        if replaying:
            forced = np.full((slots, STEPS), -1, np.int32) if forced is None else forced
            known = live.to_force(limit)
            forced[slot, : len(known)] = known
        if live.request.constraint is None:
            continue
        flags["masked"][slot] = True
        if live.waits or replaying:  # the device also stops where the tokens of one dispatch are over, and has to be told that more come
            live.waits = False
            flags["resumed"][slot] = True
            flags["single"][slot] = live.single and not replaying
    return {**flags, "allowed": allowed.copy() if flags["masked"].any() else None, "forced": forced}


def note(reads: list[Routes], fetched: list[np.ndarray]) -> None:
    """Writes down the experts of prompts with those whose they are, and with the blocks that are kept."""
    for read, experts in zip(reads, fetched, strict=True):
        for row, live, block in read.rows:
            own = experts[row, : block.count]
            live.routes.note(block.start, own)
            if block.kept is not None and block.kept.full is not None:
                block.kept.routes = own.copy()


def needed(chunk: Chunk, owners: Iterable[Live]) -> Chunk:
    """A chunk without the numbers that none of these asked for: they need not come from the device."""
    asked = [live.request.sampling for live in owners]
    ranked, given = any(one.ranked for one in asked), any(one.logprob_token_ids for one in asked)
    processed = any(one.processed_logprobs is not None for one in asked)
    drawn = chunk.sampled
    top = {} if ranked else {"top_tokens": None, "top_logprobs": None}
    rest = {"given_logprobs": drawn.given_logprobs if given else None, "processed": drawn.processed if processed else None}
    return chunk.replace(sampled=drawn.replace(**top, **rest))


def piece(live: Live, chunk: Chunk, slot: int, first: int, last: int, reason: FinishReason | None, error: str | None) -> Piece:
    """Tokens first ... last - 1 that a chunk holds for a request, and whether it ends with them."""
    drawn, asked, at = chunk.sampled, live.request.sampling, (slot, slice(first, last))
    top: list[dict[int, float]] = _top(drawn, at, asked.logprobs) if asked.logprobs else [{}] * (last - first)
    tokens, logprobs = (all[at].tolist() for all in (drawn.tokens, drawn.logprobs))
    routes, version = _routes(live, chunk, slot, first, last), live.request.weights_version
    kept = _kept(live, chunk, slot, first, last)
    out = Piece(live.request, tokens, logprobs, top, reason, routes, error, weights_version=version, captured=kept)
    return dataclasses.replace(out, **_beside(live, drawn, at)) if asked.logprob_token_ids or asked.processed_logprobs is not None else out


def _beside(live: Live, drawn: Sampled, at: tuple[int, slice]) -> dict[str, list]:
    """Log-probabilities beside the usual ones, as a piece has them."""
    asked, out = live.request.sampling, {}
    if ids := asked.logprob_token_ids:
        out["given_logprobs"] = [dict(zip(ids, row, strict=True)) for row in drawn.given_logprobs[at][:, : len(ids)].tolist()]
    if (count := asked.processed_logprobs) is not None:
        own = drawn if asked.plain and live.request.constraint is None else drawn.processed  # the model's own, to the bit
        out["processed_logprobs"] = own.logprobs[at].tolist()
        if count:
            out["top_processed_logprobs"] = _top(own, at, count, drawable=own is not drawn)
    return out


def _top(found: Sampled | Processed, at: tuple[int, slice], count: int, *, drawable: bool = False) -> list[dict[int, float]]:
    """The most probable tokens of each step; with `drawable` none that cannot be drawn."""
    rows = zip(found.top_tokens[at][:, :count].tolist(), found.top_logprobs[at][:, :count].tolist(), strict=True)
    if drawable:
        return [{token: value for token, value in zip(ids, values, strict=True) if value > -math.inf} for ids, values in rows]
    return [dict(zip(ids, values, strict=True)) for ids, values in rows]


def _kept(live: Live, chunk: Chunk, slot: int, first: int, last: int) -> dict[str, tuple[int, np.ndarray]] | None:
    """What its hook keeps of the tokens that went through the model for those that a piece has."""
    if live.looking is None or first == last:
        return None
    start = len(live.prompt) - 1 + len(live.tokens)
    return live.looking.take(start, {name: values[slot, first:last] for name, values in chunk.kept.items()})


def _routes(live: Live, chunk: Chunk, slot: int, first: int, last: int) -> np.ndarray | None:
    """Experts of the tokens that went through the model for those that a piece has: with the first piece the prompt's too."""
    if chunk.routes is None or first == last:
        return None
    own, prompt = chunk.routes[slot, first:last], live.routes.take()
    if live.tokens:  # those of the prompt have been told
        return own.copy()
    own = own[max(0, live.request.routed_experts_from - len(live.prompt) + 1) :]
    return own.copy() if prompt is None else np.concatenate([prompt, own])
