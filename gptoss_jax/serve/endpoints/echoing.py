"""Prompts of /v1/completions that come back with what the model thought of them.

`LLM.prompt_logprobs` has programs of its own, which are compiled when they are first needed, one thread at a time.
"""

import asyncio
from collections.abc import Sequence
import functools
from typing import Any

from gptoss_jax.openai import reading
from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.echoed import Echoed
from gptoss_jax.openai.writing.spelling import beside
from gptoss_jax.serve.service import Service
from gptoss_jax.turns.prompts import ids_of


async def echoed(service: Service, llm: Any, asked: Asked) -> list[Echoed]:
    """One for each prompt. Raises Refused."""
    work = functools.partial(_echoed, llm, asked)
    try:
        return await asyncio.get_running_loop().run_in_executor(service.scorer, work)
    except ValueError as error:
        raise reading.refusal(asked, str(error)) from None


def _echoed(llm: Any, asked: Asked) -> list[Echoed]:
    prompts = [ids_of(llm, task.prompt) for task in asked.tasks]
    for ids in prompts:
        llm.engine.check(ids, room=int(asked.draws))
    top, sampling = asked.given.get("logprobs"), asked.tasks[0].sampling
    sampling.validate_for(llm.engine.config.vocab_size)
    if top is None:
        return [Echoed(ids) for ids in prompts]
    told = llm.prompt_logprobs(prompts, top, token_ids=sampling.logprob_token_ids, adapter=asked.tasks[0].adapter)
    return [_with_logprobs(ids, found) for ids, found in zip(prompts, told, strict=True)]


def _with_logprobs(ids: Sequence[int], found) -> Echoed:
    most = beside(found.top_logprobs, found.given_logprobs)
    return Echoed(ids, [None, *map(float, found.logprobs)], None if most is None else [None, *most])
