"""What every form of a request shares: which of its fields are known, and how they become the fields of a Task. Knows no jax."""

from collections.abc import Collection, Mapping
import dataclasses
import hashlib
import json
import re

from gptoss_jax.quoting import MOST, quoted
from gptoss_jax.sampling.options import Sampling

INTERNAL = "internal_error"
MOST_ANSWERS = 128  # to one request, as in OpenAI's API
_MOST_SECONDS = 10**9
_MOST_PRIORITY = 2**31
# Of a request's sampling, by the same names in every form. `max_tokens` and `logprobs` have several names or shapes.
SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos"),
)
_FIELD = re.compile(r"[a-z_]+(?=[ .:'\[])")  # at the beginning of a sentence about it
_PYTHON = re.compile(r"""(?<!\w)'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\b(?:None|True|False)\b""")
_JSON = {"None": "null", "True": "true", "False": "false"}
SCHEDULING = ("n", "priority", "time_limit")


class Refused(ValueError):
    """A request that cannot be answered.

    Attributes:
        code: for programs, such as "unknown_field".
        field: which one is to blame, or None.
    """

    def __init__(self, message: str, code: str = "invalid_request", field: str | None = None):
        super().__init__(message)
        self.code, self.field = code, field


def refusal_of(error: Exception) -> Refused:
    """What the result of a line says that raised this. Raises what is not the line's: there is no memory."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValueError):
        return Refused(str(error)[: 5 * MOST])
    return Refused(
        f"a request must not break what answers it; this one raised {quoted(error)}; the others went on; send it again, and report it if "
        "that does not help.",
        INTERNAL,
    )


def blaming(message: str, body: Mapping, names: Mapping[str, str], code: str = "invalid_request") -> Refused:
    """What a request was refused for, in the words of its form.

    Args:
        message: a sentence that begins with a field by the name that `Task` and `Sampling` have for it, or with none.
        names: what begins a sentence, to what it is called in the body; the first that fits counts.
    """
    message = _PYTHON.sub(lambda found: _JSON.get(found[0], found[0]), message)
    for name, here in names.items():
        if message.startswith(name) and not message[len(name) : len(name) + 1].isidentifier():
            message = here + message[len(name) :]
            break
    found = _FIELD.match(message)
    return Refused(message, code, found[0] if found and found[0] in body else None)


@dataclasses.dataclass(frozen=True)
class Defaults:
    """For requests that say nothing.

    Attributes:
        seed: a request without a seed has one that comes from this and its id.
    """

    temperature: float = 1.0
    max_tokens: int | None = None
    reasoning_effort: str = "medium"
    seed: int = 0

    def seed_of(self, name: str) -> int:
        """The same whenever it is asked, so that a job that goes on gives the answers that it would have given."""
        digest = hashlib.blake2b(f"{self.seed} {name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 2  # the seeds after it are those of further answers


def given(
    body: Mapping,
    known: Collection[str],
    *,
    without_effect: Collection[str] = (),
    fixed: Mapping[str, tuple] | None = None,
    within: str = "",
) -> dict:
    """The fields of a body that are not null.

    Args:
        known: what the form honours.
        without_effect: what is correct to accept without doing anything.
        fixed: fields of which only these values are served; the first of them is what it is when left out.
        within: the field of the request that the body is.

    Raises:
        Refused: there are other fields, or other values of those that are fixed.
    """
    fixed = fixed or {}
    present = {name: value for name, value in body.items() if value is not None}
    for name, value in present.items():
        shown, blamed = (f"{within}.{name[:MOST]}", within) if within else (name[:MOST], name[:MOST])
        if name in fixed and not any(type(value) is type(one) and value == one for one in fixed[name]):
            served = " or ".join(map(_json_word, fixed[name]))
            raise Refused(
                f"{shown} must be {served or 'left out'}; got {_json_word(value)}, which is not supported.", "unsupported_field", blamed
            )
        if name not in known and name not in without_effect and name not in fixed:
            raise Refused(f"{shown} is no field that is known here; remove it.", "unknown_field", blamed)
    return present


def sampling(
    fields: Mapping,
    defaults: Defaults,
    name: str,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    names: Mapping[str, str] | None = None,
) -> Sampling:
    """How a request is sampled. Raises Refused where an option is out of range or of the wrong type, in the words of `names`."""
    options = {key: fields[key] for key in SAMPLING if key in fields}
    options.setdefault("temperature", defaults.temperature)
    options.setdefault("seed", defaults.seed_of(name))
    if isinstance(options.get("logit_bias"), Mapping):
        options["logit_bias"] = {_token(key): value for key, value in options["logit_bias"].items()}
    try:
        return Sampling(**options, max_tokens=defaults.max_tokens if max_tokens is None else max_tokens, logprobs=logprobs)
    except ValueError as error:
        raise blaming(str(error), fields, names or {}) from None


def scheduling(fields: Mapping) -> dict:
    """The fields of a Task that say how many answers there are and when."""
    n, limit, priority = fields.get("n", 1), fields.get("time_limit"), fields.get("priority", 0)
    if not _whole(n) or not 1 <= n <= MOST_ANSWERS:
        raise Refused(f"n must be a whole number, 1 to {MOST_ANSWERS}; got {quoted(n)}.", field="n")
    if not _whole(priority) or not -_MOST_PRIORITY <= priority < _MOST_PRIORITY:
        raise Refused(
            f"priority must be a whole number, -2**31 to 2**31 - 1; got {quoted(priority)}; those with the lowest come first.",
            field="priority",
        )
    if limit is not None and not (isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit <= _MOST_SECONDS):
        raise Refused(
            f"time_limit must be a number of seconds above 0, at most {_MOST_SECONDS:,}; got {quoted(limit)}; leave it out for no limit.",
            field="time_limit",
        )
    return {"n": n, "priority": priority, "time_limit": limit}


def tools(fields: Mapping) -> list | None:
    """The tools that the model is shown: none of them where tool_choice is "none"."""
    choice, listed = fields.get("tool_choice", "auto"), fields.get("tools")
    if choice not in ("auto", "none"):
        raise Refused(
            f'tool_choice must be "auto" or "none"; got {quoted(choice)}, which is not supported.', "unsupported_field", "tool_choice"
        )
    if listed is not None and not isinstance(listed, list):
        raise Refused(f"tools must be a list of function definitions; got {type(listed).__name__}.", field="tools")
    return listed if choice == "auto" and listed else None


def instructions(fields: Mapping) -> dict:
    """`Task.options` of a conversation that has instructions beside its messages."""
    return {} if text(fields, "instructions") is None else {"instructions": fields["instructions"]}


def continues(fields: Mapping) -> dict:
    """`Task.options` of a conversation whose last message is to be continued, by vLLM's names for it; {} for any other."""
    for name in ("continue_final_message", "add_generation_prompt"):
        if not isinstance(fields.get(name, False), bool):
            raise Refused(f"{name} must be true or false; got {quoted(fields[name])}.", field=name)
    wanted = fields.get("continue_final_message", False)
    if fields.get("add_generation_prompt", not wanted) is wanted:
        raise Refused(
            f"add_generation_prompt must not be {_json_word(wanted)} where continue_final_message is: either the last message goes on or a "
            "new one begins; leave add_generation_prompt out.",
            field="add_generation_prompt",
        )
    return {"continue_final_message": True} if wanted else {}


def text(fields: Mapping, name: str) -> str | None:
    """A field that is a string, or None."""
    if not isinstance(fields.get(name), str | None):
        raise Refused(f"{name} must be a string; got {type(fields[name]).__name__}.", field=name)
    return fields.get(name)


def mapping(fields: Mapping, name: str) -> dict:
    """A field that is an object; {} where there is none."""
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise Refused(f"{name} must be an object; got {type(value).__name__}.", field=name)
    return value


def _token(key: object) -> object:
    """JSON's keys are strings."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 20 else key


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _json_word(value: object) -> str:
    """The value as a line spells it, where that is short."""
    if isinstance(value, str):
        return value[:MOST]
    return json.dumps(value) if value in (None, True, False, ["text"]) else quoted(value)
