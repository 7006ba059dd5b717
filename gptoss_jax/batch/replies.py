"""What the forms of a result share: an answer's text, its tokens counted, its log-probabilities spelled out. Knows no jax."""

from collections.abc import Iterator
import math

CUT = ("length", "timeout", "cancelled")  # finish reasons of answers that are not whole
_LEAST = -9999.0  # for the logarithm of nothing, which JSON cannot hold; OpenAI's word for "very unlikely"


def content(reply) -> str | None:
    """What the user is told: the answer, or the word before a call; None for nothing but calls or reasoning cut off."""
    said = reply.text or reply.parsed.commentary
    return said if said or not reply.tool_calls else None


def usage(outcome, tokens_in: str, tokens_out: str) -> dict:
    """Tokens of a request under the names that a form has for them."""
    written = written_tokens(outcome)
    reasoning = sum(_reasoning_tokens(answer) for answer in outcome.answers)
    return {
        tokens_in: outcome.prompt_tokens,
        tokens_out: written,
        "total_tokens": outcome.prompt_tokens + written,
        f"{tokens_in}_details": {"cached_tokens": 0},  # what is reused depends on what else ran; a result must not
        f"{tokens_out}_details": {"reasoning_tokens": reasoning},
    }


def written_tokens(outcome) -> int:
    return sum(len(answer.tokens) for answer in outcome.answers)


def logprobs(reply, tokenizer) -> list[dict]:
    """Of the tokens of the answer, not of the reasoning and the headers."""
    return [_entry(reply, i, tokenizer) for i in _answer(reply, tokenizer)]


def finite(value: float) -> float:
    return value if math.isfinite(value) else _LEAST


def _entry(reply, i: int, tokenizer) -> dict:
    top = reply.top_logprobs[i] if reply.top_logprobs else {}
    listed = [_spelled(token, value, tokenizer) for token, value in top.items()]
    return _spelled(reply.tokens[i], reply.logprobs[i], tokenizer) | {"top_logprobs": listed}


def _spelled(token: int, value: float, tokenizer) -> dict:
    raw = tokenizer.decode_bytes([token])
    return {"token": raw.decode("utf-8", errors="replace"), "logprob": finite(value), "bytes": list(raw)}


def _answer(reply, tokenizer) -> Iterator[int]:
    """Places of the answer's tokens among all of the turn's."""
    for message in reply.parsed.messages:
        if not message.answers:
            continue
        begin, end = message.span
        tokens = reply.tokens[begin:end]
        header = tokens.index(tokenizer.special["<|message|>"]) + 1 if tokenizer.special["<|message|>"] in tokens else 0
        yield from range(begin + header, end - (message.end is not None))


def _reasoning_tokens(answer) -> int:
    parsed = getattr(answer, "parsed", None)
    spans = [message.span for message in parsed.messages if message.channel == "analysis"] if parsed else []
    return sum(end - begin for begin, end in spans)
