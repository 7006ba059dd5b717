"""What a caller passes for a prompt and how it is to be sampled: text or ids, one or many."""

from collections.abc import Sequence

import numpy as np

from gptoss_jax.sampling.options import Sampling

Prompt = str | Sequence[int]


def ids_of(llm, prompt: Prompt) -> list[int]:
    """The token ids of a prompt."""
    if isinstance(prompt, str):
        return llm.tokenizer.encode(prompt)
    check_listed(prompt)
    return prompt.tolist() if isinstance(prompt, np.ndarray) else list(prompt)


def sampling_of(sampling: Sampling | None) -> Sampling:
    """What was asked for, or the default."""
    if sampling is None:
        return Sampling()
    if not isinstance(sampling, Sampling):
        raise ValueError(f"sampling must be a Sampling; got {type(sampling).__name__}; pass gptoss_jax.Sampling(temperature=0).")
    return sampling


def per_prompt(sampling, count: int) -> list[Sampling]:
    if sampling is None or isinstance(sampling, Sampling):
        return [sampling_of(sampling)] * count
    samplings = [sampling_of(one) for one in sampling] if isinstance(sampling, Sequence) else [sampling_of(sampling)]
    if len(samplings) != count:
        raise ValueError(f"there must be one sampling for each prompt; got {len(samplings)} for {count}; pass one Sampling for all.")
    return samplings


def is_one_prompt(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Whether it is text or token ids, not a list of prompts."""
    if isinstance(prompts, str):
        return True
    check_listed(prompts)
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1
    if len(prompts) == 0:
        raise ValueError("there must be a prompt; got an empty list; pass text, token ids, or a list of prompts.")
    return all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in prompts)


def check_listed(prompt) -> None:
    listed = prompt.ndim > 0 if isinstance(prompt, np.ndarray) else isinstance(prompt, Sequence)
    if isinstance(prompt, bytes | bytearray) or not listed:
        raise ValueError(f"a prompt must be a string or a list of token ids; got {type(prompt).__name__}; decode or list it first.")
