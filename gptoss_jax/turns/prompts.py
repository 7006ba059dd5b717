"""What a caller passes for a prompt and how it is to be sampled: text or ids, one or many."""

from collections.abc import Sequence
import itertools

from gptoss_jax.engine.hooks.hook import FOR_SEVERAL, Hook, hook_of
from gptoss_jax.engine.requests import check_length
from gptoss_jax.sampling.ids import flat, is_id
from gptoss_jax.sampling.options import Sampling

Prompt = str | Sequence[int]
_FIRST = 1000  # items by which one prompt and a list of them are told apart


def ids_of(llm, prompt: Prompt, what: str = "prompt") -> list[int]:
    """The token ids of a prompt. Those that the context cannot hold are not looked at."""
    if isinstance(prompt, str):
        return llm.tokenizer.encode(prompt)
    check_listed(prompt, what)
    check_length(what, len(prompt), llm.model.config, llm.engine.context)
    return flat(f"a {what}", prompt)


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


def hooks_of(hook, count: int) -> list[Hook | None]:
    """One hook for all prompts, or one for each."""
    if isinstance(hook, list | tuple):
        if len(hook) != count:
            raise ValueError(f"there must be one hook for each prompt; got {len(hook)} for {count}; pass one hook for all.")
        return [hook_of(one) for one in hook]
    hook = hook_of(hook)
    if hook is not None and hook.for_one and count > 1:
        raise ValueError(f"what takes captures of one request must get those of one; got {count} prompts; {FOR_SEVERAL}.")
    return [hook] * count


def is_one_prompt(prompts: Prompt | Sequence[Prompt], what: str = "prompt") -> bool:
    """Whether it is text or token ids, not a list of prompts. An array of two dimensions is a list of them, as long as each other."""
    if isinstance(prompts, str):
        return True
    check_listed(prompts, what)
    if (dimensions := getattr(prompts, "ndim", 0)) > 2:
        raise ValueError(f"an array of {what}s has one dimension or two; got {dimensions}; pass a {what}, or one in each row.")
    if dimensions == 1 and getattr(getattr(prompts, "dtype", None), "kind", "i") not in "OSTU":  # of numbers, not of texts
        return True
    if len(prompts) == 0:
        raise ValueError(f"there must be a {what}; got an empty list; pass text, token ids, or a list of {what}s.")
    return dimensions != 2 and all(is_id(i) for i in itertools.islice(prompts, _FIRST))


def check_listed(prompt, what: str = "prompt") -> None:
    """Raises ValueError for what is neither a sequence nor an array with dimensions: of NumPy, JAX, torch."""
    dimensions = getattr(prompt, "ndim", None)
    if hasattr(prompt, "tolist") and isinstance(dimensions, int) and not isinstance(prompt, memoryview):
        if dimensions == 0:
            raise ValueError(
                f"a {what} must be a string or a list of token ids; got {type(prompt).__name__} without dimensions; put brackets around it."
            )
        return
    if isinstance(prompt, bytes | bytearray | memoryview) or not isinstance(prompt, Sequence):
        raise ValueError(f"a {what} must be a string or a list of token ids; got {type(prompt).__name__}; decode or list it first.")
