"""The fields that every endpoint shares: how tokens are drawn, how many answers there are, when."""

from collections.abc import Mapping
from typing import Any

from gptoss_jax.openai.asked import Reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading.fields import ANY, NOTHING, OBJECT, TEXT, TRUTH, UNSUPPORTED, Field, Kind, Table, only, whole_number
from gptoss_jax.openai.reading.words import in_json
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling.options import MAX_GIVEN, MAX_STOPS, REAL, WHOLE, OptionError, Sampling
from gptoss_jax.turns.task import LONGEST, PRIORITIES

MOST_ANSWERS = 128  # to one request, as in OpenAI's API
_OTHERS = {
    "logit_bias": "an object of token ids and numbers, -100 to 100",
    "stop": f"a string or a list of at most {MAX_STOPS}",
    "stop_token_ids": "a list of token ids",
    "logprob_token_ids": f"a list of at most {MAX_GIVEN} token ids",
    "ignore_eos": "true or false",
}


def option(name: str, called: str | None = None, about: str = "") -> Field:
    """A field that becomes an option of `Sampling`, which checks it itself."""
    fits = OBJECT.fits if name == "logit_bias" else ANY.fits  # of pairs it could be a list too
    return Field(called or name, Kind(_says(name), fits), f"sampling.{name}", about)


def _says(name: str) -> str:
    if name in _OTHERS:
        return _OTHERS[name]
    low, high, _ = REAL.get(name) or WHOLE[name]
    return f"a number, {low:g} to {high:g}" if name in REAL else f"a whole number from {low}" + (f" to {high}" if high < 2**63 - 1 else "")


# By the same names in every form. `max_tokens` and `logprobs` have several names or shapes.
SAMPLING = tuple(
    option(name)
    for name in (
        *("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos"),
    )
)
GIVEN = option("logprob_token_ids", about="beside the most probable ones in top_logprobs; needs logprobs")
N = Field("n", whole_number(1, MOST_ANSWERS), "task.n")
PRIORITY = Field(
    "priority",
    whole_number(-PRIORITIES, PRIORITIES - 1, "those with the lowest come first", says="a whole number, -2**31 to 2**31 - 1"),
    "task.priority",
)
TIME_LIMIT = Field(
    "time_limit",
    Kind(
        f"a number of seconds above 0, at most {LONGEST:,}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LONGEST,
        "leave it out for no limit",
    ),
    "task.time_limit",
)
_NOTHING_TO_DO = "nothing need be done about it"
# What OpenAI's endpoints take, and what has no effect on an answer.
WITHOUT_EFFECT = (
    Field("model", TEXT, about="there is one model; the answer bears this name"),
    *(Field(name, TEXT, about=_NOTHING_TO_DO, files=ANY) for name in ("user", "service_tier", "safety_identifier")),
    *(Field(name, TEXT, about="prefixes are kept by themselves", files=ANY) for name in ("prompt_cache_key", "prompt_cache_retention")),
    Field("metadata", OBJECT, about="comes back as it is, where the endpoint's answer has it", files=ANY),
)
STREAMING = (
    Field("stream", TRUTH, about="server-sent events", files=only(False)),
    Field(
        "stream_options",
        OBJECT,
        files=NOTHING,
        inner=Table(
            Field("include_usage", TRUTH, about="what it has cost, at the end of the stream"),
            Field("include_obfuscation", TRUTH, about="no padding is sent, whatever it says"),
            Field("continuous_usage_stats", only(False), about="usage is said at the end", hint=only(True)),
        ),
    ),
)
# vLLM's, which would change an answer: served as they are when left out.
OTHERS = (
    Field("min_tokens", only(0)),
    *(Field(name, only(False)) for name in ("use_beam_search", "include_stop_str_in_output")),
    *(Field(name, only(False)) for name in ("return_token_ids", "return_tokens_as_token_ids")),
    *(Field(name, only(True)) for name in ("skip_special_tokens", "spaces_between_special_tokens")),
    Field("length_penalty", Kind("1", lambda value: value == 1 and not isinstance(value, bool), code=UNSUPPORTED)),
    *(
        Field(name, NOTHING)
        for name in ("allowed_token_ids", "bad_words", "logits_processors", "prompt_logprobs", "truncate_prompt_tokens")
    ),
)


def sampling(
    body: Mapping, table: Table, reading: Reading, name: str, *, max_tokens: int | None, logprobs: int | None, index: int = 0
) -> Sampling:
    """How a request is sampled. Raises Refused where an option is out of range or of the wrong type, by the name that the table has for it.

    Args:
        name: of the request, of which its seed is made where it has none; `index` counts the prompts of one.
    """
    options: dict[str, Any] = {field.name: body[field.name] for field in SAMPLING if field.name in body}
    options |= {name: body[name] for name in ("logprob_token_ids", "processed_logprobs") if name in body}
    options.setdefault("temperature", reading.defaults.temperature)
    options.setdefault("seed", reading.defaults.seed_of(f"{name} {index}" if index else name))
    if isinstance(options.get("logit_bias"), Mapping):
        options["logit_bias"] = [(_token(key), value) for key, value in options["logit_bias"].items()]  # two keys may name one token
    try:
        return Sampling(**options, max_tokens=reading.defaults.max_tokens if max_tokens is None else max_tokens, logprobs=logprobs)
    except OptionError as error:
        called = table.called(f"sampling.{error.option}", body)
        raise Refused(called + in_json(error.says), field=called if called in body else None) from None


def check_given(fields: Mapping, listed: bool) -> None:
    """Raises Refused where log-probabilities of given ids are asked for, and the list that they stand in is not."""
    if fields.get("logprob_token_ids") and not listed:
        raise Refused("logprob_token_ids needs logprobs; ask for them, or remove logprob_token_ids.", field="logprob_token_ids")


def scheduling(body: Mapping, reading: Reading) -> dict:
    """The fields of a Task that say how many answers there are and when."""
    limits = [limit for limit in (body.get("time_limit"), reading.time_limit) if limit is not None]
    return {"n": body.get("n", 1), "priority": body.get("priority", 0), "time_limit": min(limits, default=None)}


def _token(key: str) -> int:
    """JSON's keys are strings. Raises Refused for one that is no token id."""
    if not (key.isascii() and key.isdecimal() and len(key) < 20):
        raise Refused(f"logit_bias must name token ids; got {quoted(key)}; take ids from the model's tokenizer.", field="logit_bias")
    return int(key)
