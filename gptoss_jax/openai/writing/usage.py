"""How many tokens a request took. Knows no jax."""

from collections.abc import Sequence

from gptoss_jax.openai.told import Told
from gptoss_jax.turns.completion import Completion
from gptoss_jax.turns.reply import Reply
from gptoss_jax.turns.task import Outcome


def of_chat(outcomes: Sequence[Outcome], told: Told) -> dict:
    """What chat and completions call it."""
    return _usage(outcomes, told, "prompt_tokens", "completion_tokens")


def of_response(outcomes: Sequence[Outcome], told: Told) -> dict:
    """What Responses call it."""
    out = _usage(outcomes, told, "input_tokens", "output_tokens")
    if not told.as_batch:
        out["input_tokens_details"]["cache_write_tokens"] = 0  # none are charged for
    return out


def written(outcomes: Sequence[Outcome]) -> int:
    """Tokens of all answers."""
    return sum(len(answer.tokens) for outcome in outcomes for answer in outcome.answers)


def _usage(outcomes: Sequence[Outcome], told: Told, tokens_in: str, tokens_out: str) -> dict:
    prompt, answers = sum(outcome.prompt_tokens for outcome in outcomes), written(outcomes)
    cached = sum(outcome.cached_tokens for outcome in outcomes) if told.cached else 0
    reasoning = sum(_reasoning_tokens(answer) for outcome in outcomes for answer in outcome.answers)
    return {
        tokens_in: prompt,
        tokens_out: answers,
        "total_tokens": prompt + answers,
        f"{tokens_in}_details": {"cached_tokens": cached},
        f"{tokens_out}_details": {"reasoning_tokens": reasoning},
    }


def _reasoning_tokens(answer: Reply | Completion) -> int:
    parsed = getattr(answer, "parsed", None)
    spans = [message.span for message in parsed.messages if message.channel == "analysis"] if parsed else []
    return sum(end - begin for begin, end in spans)
