"""Flags that jobs and servers share: which model, in which form, what an LLM of it holds, what requests get that do not say. No jax.

For entry points only.
"""

from typing import Any

from absl import flags


def define_flags(to: flags.FlagValues) -> None:
    """Adds the flags to a set of them."""
    text, whole = flags.DEFINE_string, flags.DEFINE_integer
    text("checkpoint", "nano", "Checkpoint directory, hub repository, or 'nano', the bundled one.", to)
    whole("slots", 8, "Most answers that are written side by side.", lower_bound=1, flag_values=to)
    whole("context", None, "Most tokens of a prompt and its answer; default 8,192 or the model's own limit.", lower_bound=2, flag_values=to)
    whole("chunk", None, "Most prompt tokens that are read at a time; see LLM.", lower_bound=1, flag_values=to)
    whole("cache_tokens", None, "Tokens that the cache has room for; see LLM.", lower_bound=1, flag_values=to)
    flags.DEFINE_bool("prefix_reuse", True, "Read beginnings that prompts share once.", to)
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of everything but packed experts.", to)
    flags.DEFINE_enum("cache_dtype", None, ["float8_e4m3fn"], "Of cached keys and values; default that of the weights.", to)
    forms = ["auto", "packed", "tiled", "stacked", "split"]
    flags.DEFINE_enum("experts", "auto", forms, "How expert weights are held; see gptoss_jax.load.", to)
    flags.DEFINE_enum("kernels", "auto", ["auto", "on", "off"], "Which kernels run on a Hopper GPU; see gptoss_jax.load.", to)
    whole("max_tokens", None, "Most tokens of an answer, for requests that do not say; default what the context leaves.", 1, flag_values=to)
    flags.DEFINE_float("temperature", None, "For requests that do not say; default the model card's 1, for nano 0.", flag_values=to)
    flags.DEFINE_enum("reasoning_effort", "medium", ["low", "medium", "high"], "For requests that do not say.", to)
    text("compilation_cache", "default", "Folder that keeps compiled programs; 'default' in the user's, 'off' none.", to)


def of_load(given: flags.FlagValues) -> dict[str, Any]:
    """What they say to `load`."""
    return {name: getattr(given, name) for name in ("dtype", "experts", "kernels")}


def of_llm(given: flags.FlagValues) -> dict[str, Any]:
    """What they say to `LLM`."""
    return {name: getattr(given, name) for name in ("slots", "context", "chunk", "cache_tokens", "cache_dtype", "prefix_reuse")}


def temperature(given: flags.FlagValues) -> float:
    """For requests that do not say."""
    return temperature_of(given.temperature, given.checkpoint)


def temperature_of(said: float | None, checkpoint: str) -> float:
    """The model card's where nothing is said; nano, which is small, takes the most probable token."""
    return said if said is not None else 0.0 if checkpoint == "nano" else 1.0
