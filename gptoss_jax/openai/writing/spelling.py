"""Tokens and their log-probabilities as JSON spells them. Knows no jax."""

from collections.abc import Iterable, Mapping, Sequence
import math

from gptoss_jax.tokenizer import Tokenizer

_LEAST = -9999.0  # for the logarithm of nothing, which JSON cannot hold; OpenAI's word for "very unlikely"


def finite(value: float) -> float:
    return value if math.isfinite(value) else _LEAST


def beside(top: Sequence[Mapping[int, float]] | None, given: Sequence[Mapping[int, float]] | None) -> Sequence[Mapping[int, float]] | None:
    """What stands beside each token: the most probable ones, then the given ones that are none of them; None where none was asked for."""
    if given is None:
        return top
    tops = [{}] * len(given) if top is None else top
    return [one | {token: value for token, value in other.items() if token not in one} for one, other in zip(tops, given, strict=True)]


def entries(
    tokens: Sequence[int], logprobs: Iterable[float], tops: Iterable[Mapping[int, float]] | None, tokenizer: Tokenizer
) -> list[dict]:
    """What chat and Responses say of tokens: {"token", "logprob", "bytes", "top_logprobs"} of each."""
    listed = tops if tops is not None else [{}] * len(tokens)
    return [
        _spelled(token, value, tokenizer) | {"top_logprobs": [_spelled(other, x, tokenizer) for other, x in top.items()]}
        for token, value, top in zip(tokens, logprobs, listed, strict=True)
    ]


def _spelled(token: int, value: float, tokenizer: Tokenizer) -> dict:
    raw = tokenizer.decode_bytes([token])
    return {"token": raw.decode("utf-8", errors="replace"), "logprob": finite(value), "bytes": list(raw)}
