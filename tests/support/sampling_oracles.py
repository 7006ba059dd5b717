"""What tokens are drawn from, in float64 NumPy, row by row: penalties, filters, distributions."""

from collections.abc import Sequence

import numpy as np

from gptoss_jax.sampling.options import Sampling


def ranked(logits: np.ndarray) -> np.ndarray:
    """Token ids [V], most probable first, of equals the lowest first."""
    return np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - np.max(logits))
    return weights / weights.sum()


def adjusted(logits: np.ndarray, options: Sampling, prompt: Sequence[int], generated: Sequence[int]) -> np.ndarray:
    """Logits [V] with biases and penalties."""
    out = logits.astype(np.float64)
    for token, bias in options.logit_bias:
        out[token] += bias
    for token in set(prompt) | set(generated):
        out[token] = out[token] / options.repetition_penalty if out[token] > 0 else out[token] * options.repetition_penalty
    for token in set(generated):
        out[token] -= options.frequency_penalty * generated.count(token) + options.presence_penalty
    return out


def kept(logits: np.ndarray, options: Sampling) -> list[int]:
    """Ids that min_p, then top_k, then top_p keep, by sorting; the most probable first."""
    probs = softmax(logits.astype(np.float64) / options.temperature)
    order = [token for token in ranked(logits) if probs[token] >= options.min_p * probs.max()]
    order = order[: options.top_k or None]
    if options.top_p < 1:
        mass = np.cumsum(probs[order]) / probs[order].sum()
        order = order[: np.searchsorted(mass, options.top_p) + 1]
    return order


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[V] float64; -inf for what is -inf."""
    top = np.max(logits)
    return logits.astype(np.float64) - top - np.log(np.exp(logits.astype(np.float64) - top).sum())


def drawn_from(logits: np.ndarray, options: Sampling) -> np.ndarray:
    """The log-probabilities [V] of what an adjusted row is drawn from: -inf for tokens that cannot be."""
    out = np.full(len(logits), -np.inf)
    if options.greedy:
        out[np.argmax(logits)] = 0
        return out
    some = kept(logits, options)
    out[some] = log_softmax(logits[some] / options.temperature)
    return out
