"""A model on one device or a mesh, and its answers to requests of many kinds: what test_mesh compares, and processes too."""

import functools

import numpy as np
from small_model import DIRECTORY

import gptoss_jax as gj
from gptoss_jax.engine.engine import Engine, Request

ROWS, CHUNK = 8, 32


@functools.cache
def model(name, dtype="float32", experts="packed", shape=None):
    path = DIRECTORY if name == "tiny" else name
    return gj.load(path, dtype=dtype, experts=experts, mesh=shape and gj.mesh(*shape), progress=False)


def prompts(config):
    """Of one or two chunks, so that few programs are compiled."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, config.vocab_size, n).tolist() for n in rng.integers(5, 2 * CHUNK, ROWS - 1)] + [[7] * 2 * CHUNK]


def requests(config):
    kinds = [
        lambda i: gj.Sampling(temperature=0, max_tokens=16, logprobs=5),
        lambda i: gj.Sampling(temperature=1, seed=i, max_tokens=16),
        lambda i: gj.Sampling(
            **{"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": i, "max_tokens": 16},
            **{"processed_logprobs": 3, "logprob_token_ids": (5, 9)},
        ),
        lambda i: gj.Sampling(presence_penalty=0.5, repetition_penalty=1.2, logit_bias={5: 2.0}, seed=i, max_tokens=16),
    ]
    return [Request(prompt, kinds[i % len(kinds)](i)) for i, prompt in enumerate(prompts(config))]


def answers(model):
    """Of every request tokens, log-probabilities, and the most probable ids of each place; and those that were asked for beside them."""
    engine = Engine(model.params, model.config, eos_token_ids=model.eos_token_ids, slots=ROWS, context=128, chunk=CHUNK)
    asked = requests(model.config)
    got = {id(request): ([], [], [], []) for request in asked}
    for piece in engine.run(asked):
        beside = [value for one in piece.given_logprobs or [] for value in one.values()] + (piece.processed_logprobs or [])
        for all, new in zip(got[id(piece.request)], (piece.tokens, piece.logprobs, map(tuple, piece.top_logprobs), beside), strict=True):
            all.extend(new)
    return [got[id(request)] for request in asked]


@functools.cache
def alone(name, dtype):
    return answers(model(name, dtype))
