"""Given tokens through the programs that draw; see `LLM.replay`."""

from collections.abc import Sequence
import dataclasses

from gptoss_jax.engine.requests import Piece, Request, check_length
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling.ids import flat
from gptoss_jax.sampling.options import Sampling, check_top
from gptoss_jax.tokenizer import STOP
from gptoss_jax.turns.completion import Completion, CompletionBuilder
from gptoss_jax.turns.prompts import Prompt, check_listed, ids_of


def replay(
    llm, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]], top_logprobs: int | None, adapter: str | None
) -> list[Completion]:
    """See `LLM.replay`."""
    check_top("top_logprobs", top_logprobs)
    _check_listed(tokens)
    if len(tokens) != len(prompts):
        raise ValueError(f"there must be one list of tokens for each prompt; got {len(tokens)} for {len(prompts)}; pass as many.")
    builders: dict[Request, CompletionBuilder] = {}
    for prompt, one in zip(prompts, tokens, strict=True):
        _check_listed(one)
        check_length("replay", len(one), llm.model.config, llm.engine.context)
        one = flat("a replay", one)
        # The draw is overruled: only what ends a request and what is reported matters.
        sampling = Sampling(temperature=0, ignore_eos=True, max_tokens=max(1, len(one)), logprobs=top_logprobs or 0)
        request = Request(ids_of(llm, prompt), sampling, forced=one, adapter=adapter)
        builders[request] = CompletionBuilder(request, llm.model.tokenizer)
    special = {} if llm.model.tokenizer is None else llm.model.tokenizer.special
    ends = {*llm.model.eos_token_ids, *(special[name] for name in STOP if name in special)}
    for piece in llm.engine.run(list(builders)):
        builders[piece.request].add(_ended(piece, ends))
    return [builder.result() for builder in builders.values()]


def _check_listed(tokens) -> None:
    if isinstance(tokens, str):
        raise ValueError(f"tokens must be token ids; got the text {quoted(tokens, 20)}; pass the tokens of what was generated.")
    check_listed(tokens, "replay")


def _ended(piece: Piece, ends: set[int]) -> Piece:
    """A piece of a replay, which has ended with "stop" where its last token ends a turn."""
    stopped = piece.finish_reason == "length" and piece.tokens and piece.tokens[-1] in ends
    return dataclasses.replace(piece, finish_reason="stop") if stopped else piece
