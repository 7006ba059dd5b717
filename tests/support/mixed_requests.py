"""Requests of many kinds for a small engine, and what it reports of them: what test_continuous compares and others too."""

import numpy as np
from small_model import small_model

from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling

SLOTS, CONTEXT, PAGE = 4, 96, 16


def make(**options):
    model = small_model()
    options = {"slots": SLOTS, "context": CONTEXT, "chunk": 32, "page": PAGE} | options
    return Engine(model.params, model.config, eos_token_ids=(319,), **options)


def prompt(length, seed=0):
    return np.random.default_rng((length, seed)).integers(0, 319, length).tolist()


def sampling(seed, **options):
    kinds = [
        {"temperature": 0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.5, "presence_penalty": 1.0, "repetition_penalty": 1.2, "top_k": 40},
    ]
    return Sampling(**{"seed": seed, "max_tokens": 5 + seed % 17, "logprobs": seed % 3} | kinds[seed % 3] | options)


SHARED = prompt(50, seed=99)
MIXED = [
    *((prompt(n, n), sampling(n)) for n in (1, 2, 16, 17, 33, 60, 80, 5)),
    *((SHARED + prompt(n, n), sampling(n)) for n in (1, 14, 15, 30, 3)),
    (SHARED, sampling(4)),
]


def everything(engine, requests):
    """All that is reported of each request, in the requests' order."""
    seen = {id(r): ([], [], [], []) for r in requests}
    for piece in engine.run(requests):
        for to, new in zip(seen[id(piece.request)], (piece.tokens, piece.logprobs, piece.top_logprobs), strict=False):
            to += new
        if piece.finish_reason:
            seen[id(piece.request)][3].append(piece.finish_reason)
    return [seen[id(r)] for r in requests]


def fresh(which=MIXED, **options):
    return [Request(p, s, **options) for p, s in which]


def nothing_is_held(engine):
    """No page has a user, no slot an owner, nobody waits."""
    assert engine.wait_idle()
    scheduler = engine.scheduler
    assert not scheduler.lives and not scheduler.waiting
    for pages in scheduler.pages:
        assert pages.full.used == pages.ring.used == 0
        assert pages.full.available == pages.full.count and pages.ring.available == pages.ring.count
