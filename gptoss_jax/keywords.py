"""Keywords that a call does not take, refused in the call's own words: where they belong, or which one is nearest. Knows no call."""

from collections.abc import Callable, Collection, Iterable, Mapping
import difflib
import functools
import inspect

from gptoss_jax.quoting import quoted

# What other libraries call it.
SYNONYMS = {
    **dict.fromkeys(("max_new_tokens", "max_completion_tokens", "max_output_tokens", "max_length", "num_predict"), "max_tokens"),
    **dict.fromkeys(("stop_sequences", "stop_strings", "stop_words"), "stop"),
    **dict.fromkeys(("num_return_sequences", "num_samples", "best_of"), "n"),
    **dict.fromkeys(("temp", "do_sample"), "temperature"),
    **dict.fromkeys(("random_seed", "rng", "key_seed"), "seed"),
    **dict.fromkeys(("top_logprobs", "num_logprobs"), "logprobs"),
    **dict.fromkeys(("token_ids_logprob",), "logprob_token_ids"),
    **dict.fromkeys(("repeat_penalty",), "repetition_penalty"),
    **dict.fromkeys(("functions",), "tools"),
    **dict.fromkeys(("function_call",), "tool_choice"),
    **dict.fromkeys(("effort", "reasoning", "thinking"), "reasoning_effort"),
    **dict.fromkeys(("system", "system_prompt"), "instructions"),
    **dict.fromkeys(("timeout", "max_time"), "time_limit"),
    **dict.fromkeys(("sampling_params", "generation_config"), "sampling"),
    **dict.fromkeys(("schema", "json_schema", "grammar"), "response_format"),
}
_LONGEST = 40  # letters of a name that another may be near to


class UnknownKeyword(TypeError):
    """A call does not take a keyword; the sentence says what may be meant."""


def refuse(call: str, given: Mapping, known: Collection[str], elsewhere: Mapping[str, str] | None = None) -> None:
    """Refuses keywords that are not known.

    Args:
      call: what takes them, for the sentence.
      elsewhere: of keywords that others take, where they belong; "{name}" and "{value}" in it are replaced.

    Raises:
      UnknownKeyword: with one sentence, of the first of them.
    """
    elsewhere = elsewhere or {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise UnknownKeyword(f"{call} takes keywords, which are strings; got {quoted(name, 60)}; name it by a string.")
        if name not in known:
            shown = name if name.isidentifier() and len(name) <= _LONGEST else quoted(name, 60)
            raise UnknownKeyword(f"{call} takes no {shown}; {_remedy(name, value, known, elsewhere)}.")


def _remedy(name: str, value: object, known: Collection[str], elsewhere: Mapping[str, str]) -> str:
    meant = SYNONYMS.get(name, name)
    called = "" if meant == name else f"that is called {meant} here; "
    if meant in known:
        return f"{called}pass {meant}={quoted(value, 40)}"
    if one_letter := difflib.get_close_matches(name, known, 1, 0.9) if len(name) <= _LONGEST else []:
        return f"the nearest that it takes is {one_letter[0]}"
    if meant in elsewhere:
        return called + _put(elsewhere[meant], meant, value)
    near = difflib.get_close_matches(name, [*known, *elsewhere], 1, 0.7) if len(name) <= _LONGEST else []
    if near and near[0] in known:
        return f"the nearest that it takes is {near[0]}"
    if near:
        return f"the nearest is {near[0]}: {_put(elsewhere[near[0]], near[0], value)}"
    return f"it takes {', '.join(known)}"


def _put(where: str, name: str, value: object) -> str:
    return where.replace("{name}", name).replace("{value}", quoted(value, 40))


def own_words(*, further: Iterable[str] = (), elsewhere: Mapping[str, str] | None = None) -> Callable:
    """A decorator of functions and classes, which then refuse unknown keywords by `refuse`, before anything else.

    Args:
      further: keywords that are taken and stand in no signature, but behind `**`.
      elsewhere: as for `refuse`.

    What it returns has `takes`: the keywords that are taken.
    """

    def wrap(call):
        made = call.__init__ if isinstance(call, type) else call
        named = [one.name for one in inspect.signature(made).parameters.values() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        known = dict.fromkeys((*(name for name in named if name != "self"), *further))

        @functools.wraps(made)
        def worded(*args, **given):
            if not known.keys() >= given.keys():
                refuse(call.__name__, given, known, elsewhere)
            return made(*args, **given)

        if not isinstance(call, type):
            worded.takes = tuple(known)
            return inspect.markcoroutinefunction(worded) if inspect.iscoroutinefunction(call) else worded
        call.__init__ = worded
        return call

    return wrap
