"""Bodies of OpenAI's /v1/completions: prompts that are continued as they stand."""

from collections.abc import Mapping

from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading import forms
from gptoss_jax.openai.reading.fields import TRUTH, UNSUPPORTED, Field, Kind, Table, Taken, only, whole, whole_number
from gptoss_jax.openai.reading.sampling import (
    GIVEN,
    OTHERS,
    PRIORITY,
    SAMPLING,
    STREAMING,
    WITHOUT_EFFECT,
    N,
    check_given,
    option,
    sampling,
    scheduling,
)
from gptoss_jax.quoting import quoted
from gptoss_jax.turns.prompts import Prompt
from gptoss_jax.turns.task import Task

MAX_TOKENS = 16  # where nothing is said, as OpenAI has it
MOST_PROMPTS = 1024
_PROMPT = "a string, a list of token ids, or a list of strings or of such lists"
_NAMES = {"token ids": "prompt's token ids", "a prompt": "prompt"}  # that sentences about it begin with

TABLE = Table(
    Field("prompt", Kind(_PROMPT, lambda value: isinstance(value, str | list)), "task.prompt", f"at most {MOST_PROMPTS:,} of them"),
    option("max_tokens", about=f"{MAX_TOKENS} if left out; 0 beside echo: nothing is drawn"),
    *SAMPLING,
    Field("logprobs", whole_number(0, 5), "sampling.logprobs"),
    GIVEN,
    N,
    Field("echo", TRUTH, about="the prompt comes back before its continuation", files=only(False)),
    forms.RESPONSE_FORMAT,
    forms.STRUCTURED,
    PRIORITY,
    *STREAMING,
    *WITHOUT_EFFECT,
    Field("best_of", N.kind, about="must be n: none of the answers is left out"),
    Field("suffix", only(""), about="gpt-oss fills no gaps"),
    Field("add_special_tokens", TRUTH, about="there are none to add"),
    *OTHERS,
)


def read(body: Mapping, fields: Mapping, taken: Taken, name: str) -> Asked:
    """One Task for each prompt. Raises Refused where none can be made of the fields of a body."""
    if fields.get("best_of", fields.get("n", 1)) != fields.get("n", 1):
        raise Refused(
            f"best_of must be n, {fields.get('n', 1)}; got {fields['best_of']}, which is not supported: all answers come back; remove it.",
            UNSUPPORTED,
            "best_of",
        )
    limit = fields.get("max_tokens", MAX_TOKENS if taken.reading.defaults.max_tokens is None else None)
    nothing = whole(limit) and limit == 0 and fields.get("echo", False)
    check_given(fields, "logprobs" in fields)
    form = forms.response_format(fields, taken)
    wanted = {"max_tokens": 1 if nothing else limit, "logprobs": fields.get("logprobs")}
    tasks = [
        Task(
            prompt=prompt,
            sampling=sampling(fields, TABLE, taken.reading, name, index=i, **wanted),
            response_format=form,
            **scheduling(fields, taken.reading),
        )
        for i, prompt in enumerate(_prompts(fields.get("prompt")))
    ]
    return Asked("completions", tuple(tasks), body, tuple(taken.ignored), name=name, places=_NAMES | forms.places(fields))


def _prompts(given: object) -> list[Prompt]:
    """One prompt or several, whatever the shape that they come in."""
    if isinstance(given, str) or _is_ids(given):
        return [given]
    if not isinstance(given, list) or not given or not (all(isinstance(one, str) for one in given) or all(_is_ids(one) for one in given)):
        raise Refused(f"prompt must be {_PROMPT}, none of them empty; got {quoted(given, json=True)}.", field="prompt")
    if len(given) > MOST_PROMPTS:
        raise Refused(f"prompt must be at most {MOST_PROMPTS:,} prompts; got {len(given):,}; send several requests.", field="prompt")
    return given


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and {*map(type, value)} == {int}
