"""What chat and responses share: how much is thought, which message goes on."""

from collections.abc import Mapping

from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading.fields import OBJECT, TEXT, TRUTH, Field, Table, of_words
from gptoss_jax.quoting import quoted

EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
EFFORT = of_words(*EFFORTS, hint="gpt-oss knows low, medium and high, and always reasons")
_SAID = "minimal is low, xhigh is high: gpt-oss knows low, medium and high"
REASONING_EFFORT = Field("reasoning_effort", EFFORT, "task.reasoning_effort", _SAID)
CONTINUE = Field("continue_final_message", TRUTH, "options.continue_final_message")
TEMPLATE = Field(
    "chat_template_kwargs",
    OBJECT,
    about="of gpt-oss' own template",
    inner=Table(Field("reasoning_effort", EFFORT), Field("model_identity", TEXT, "options.model_identity")),
)


def effort(body: Mapping, inner: Mapping, default: str) -> str:
    """How much is thought, in gpt-oss' words; `inner` says it too."""
    said = [one["reasoning_effort"] for one in (body, inner) if "reasoning_effort" in one]
    if len({EFFORTS[one] for one in said}) > 1:
        raise Refused(
            f"reasoning_effort must be said once; got {said[0]}, and {said[1]} in chat_template_kwargs; drop one.", field="reasoning_effort"
        )
    return EFFORTS[said[0]] if said else default


def continues(body: Mapping) -> dict:
    """`Task.options` of a conversation whose last message is to be continued, by vLLM's names for it; {} for any other."""
    wanted = body.get("continue_final_message", False)
    if body.get("add_generation_prompt", not wanted) is wanted:
        raise Refused(
            f"add_generation_prompt must not be {quoted(wanted, json=True)} where continue_final_message is: either the last message goes "
            "on or a new one begins; leave add_generation_prompt out.",
            field="add_generation_prompt",
        )
    return {"continue_final_message": True} if wanted else {}
