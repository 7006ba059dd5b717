"""Given tokens through the programs that draw; see `LLM.replay`."""

from collections.abc import Sequence
import dataclasses

from gptoss_jax.engine.requests import Piece, Request, check_length
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling.ids import flat
from gptoss_jax.sampling.options import Sampling, check_top
from gptoss_jax.tokenizer import STOP
from gptoss_jax.turns.completion import Completion, CompletionBuilder
from gptoss_jax.turns.prompts import Prompt, check_listed, ids_of, per_prompt


def replay(
    llm,
    prompts: Sequence[Prompt],
    tokens: Sequence[Sequence[int]],
    top_logprobs: int | None,
    sampling: Sampling | Sequence[Sampling] | None,
    adapter: str | None,
) -> list[Completion]:
    """See `LLM.replay`."""
    check_top("top_logprobs", top_logprobs)
    _check_listed(tokens)
    if len(tokens) != len(prompts):
        raise ValueError(f"there must be one list of tokens for each prompt; got {len(tokens)} for {len(prompts)}; pass as many.")
    builders: dict[Request, CompletionBuilder] = {}
    for prompt, one, own in zip(prompts, tokens, per_prompt(sampling, len(prompts)), strict=True):
        _check_listed(one)
        check_length("replay", len(one), llm.model.config, llm.engine.context)
        one = flat("a replay", one)
        request = Request(ids_of(llm, prompt), _forced(own, len(one), top_logprobs), forced=one, adapter=adapter)
        builders[request] = CompletionBuilder(request, llm.model.tokenizer)
    special = {} if llm.model.tokenizer is None else llm.model.tokenizer.special
    ends = {*llm.model.eos_token_ids, *(special[name] for name in STOP if name in special)}
    for piece in llm.engine.run(list(builders)):
        builders[piece.request].add(_ended(piece, ends))
    return [builder.result() for builder in builders.values()]


def _forced(sampling: Sampling, count: int, top_logprobs: int | None) -> Sampling:
    """What reports as a sampling says and takes all of `count` tokens. The draw is overruled: its settings matter where what they leave is
    reported."""
    own = sampling if sampling.processed_logprobs is not None else Sampling(temperature=0, logprob_token_ids=sampling.logprob_token_ids)
    top = sampling.logprobs if top_logprobs is None else top_logprobs
    unended = {"stop": (), "stop_token_ids": (), "ignore_eos": True, "max_tokens": max(1, count)}
    return dataclasses.replace(own, **unended, seed=0, logprobs=top or 0)


def _check_listed(tokens) -> None:
    if isinstance(tokens, str):
        raise ValueError(f"tokens must be token ids; got the text {quoted(tokens, 20)}; pass the tokens of what was generated.")
    check_listed(tokens, "replay")


def _ended(piece: Piece, ends: set[int]) -> Piece:
    """A piece of a replay, which has ended with "stop" where its last token ends a turn."""
    stopped = piece.finish_reason == "length" and piece.tokens and piece.tokens[-1] in ends
    return dataclasses.replace(piece, finish_reason="stop") if stopped else piece
