"""Prompts and decode steps of whole small models as the program that a GPU gets, every kernel's PTX emulated on the CPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from checkpoints.synthesize import write_checkpoint
import gptoss_jax as gj
from gptoss_jax import harmony
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.transformer import decode_step, prefill
from pallas_kernels import aot, emulator

GOLDEN_BF16 = 0.0336  # as in test_fused
PROMPTS = (96, 33)  # more rows of queries than the kernel for few takes, more tokens than a decode step's experts
TOKENS = 8
QUESTION = "What is 27 + 58?"
DECODE = {"project_qkv", "attention_decode", "project_out", "router", "route", "moe_gate_up", "moe_down", "add_norm", "unembed"}
PREFILL = {"attention_prefill", "moe_gate_up_grouped", "moe_down_grouped"}

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason="the extra `aot` is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random one that runs every kernel of the published models: groups of eight heads, eight experts, a sliding and a full layer."""
    small = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 640, "num_local_experts": 8, "sliding_window": 64}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 2, "num_hidden_layers": 2, "layer_types": gj.GPT_OSS_20B.layer_types[:2]}
    out = tmp_path_factory.mktemp("small")
    write_checkpoint(dataclasses.replace(gj.GPT_OSS_20B, **small, **heads, eos_token_ids=()), out)
    return out


@functools.cache
def load(checkpoint, experts="tiled"):
    return gj.load(checkpoint, dtype="bfloat16", experts=experts, progress=False)


def prompts(vocab_size):
    rng = np.random.default_rng(0)
    return [rng.integers(20, vocab_size, n, np.int32) for n in PROMPTS]


def arguments(model, rows):
    """Of `prefill`: parameters, an empty cache, the prompts and their lengths."""
    longest = max(map(len, rows))
    cache = init_cache(model.config, len(rows), longest + 128, chunk=longest, dtype=jnp.bfloat16)
    padded = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    return model.params, cache, padded, np.array([len(row) for row in rows], np.int32)


def programs(config):
    """A prompt's, a step's."""
    step = lambda params, cache, tokens, active: decode_step(params, config, cache, tokens, active=active)
    return lambda params, cache, tokens, counts: prefill(params, config, cache, tokens, counts), step


def emulated(program, *args):
    """The program with its kernels emulated, each time with another schedule; the names of kernels that ran; nothing may be found."""
    ready, seen, runs = emulator.Emulated(program, *args), set(), iter(range(10_000))

    def run(*args):
        seed = next(runs)
        out, report = ready(*args, seed=seed, policy=emulator.POLICIES[seed % len(emulator.POLICIES)])
        seen.update(launch.name for launch in report.launches)
        assert not [launch.reports for launch in report.launches if launch.reports]
        return out

    return run, seen


def exact(checkpoint, config, rows):
    weights = oracle.tensors(checkpoint)
    return np.stack([oracle.forward(weights, config, row)[-1] for row in rows])


@pytest.mark.thorough
def test_a_step_of_emulated_kernels_is_as_close_to_float32_as_the_plain_one(checkpoint):
    model, plain_model = load(checkpoint), load(checkpoint, "packed")
    rows = prompts(model.config.vocab_size)
    first, step = programs(model.config)
    _, cache = jax.jit(first)(*arguments(model, [row[:-1] for row in rows]))
    rest = cache, np.array([row[-1] for row in rows]), np.ones(len(rows), bool)
    run, seen = emulated(step, model.params, *rest)
    got, plain = run(model.params, *rest)[0], jax.jit(step)(plain_model.params, *rest)[0]
    wanted = exact(checkpoint, model.config, rows)
    assert seen == DECODE
    assert oracle.error(got, wanted) <= min(2 * oracle.error(plain, wanted), GOLDEN_BF16)


@pytest.mark.slow
def test_a_prompt_and_eight_tokens_through_emulated_kernels(checkpoint):
    """Logits within the references' own distance from float32; the tokens are those of XLA's forms."""
    model = load(checkpoint)
    rows = prompts(model.config.vocab_size)
    first, step = programs(model.config)
    given = arguments(model, rows)
    run, seen = emulated(first, *given)
    logits, cache = run(*given)
    assert seen >= PREFILL
    plain_logits, plain_cache = jax.jit(first)(load(checkpoint, "packed").params, *given[1:])
    wanted = exact(checkpoint, model.config, rows)
    assert oracle.error(logits, wanted) <= min(2 * oracle.error(plain_logits, wanted), GOLDEN_BF16)
    plain_step, active = jax.jit(step), np.ones(len(rows), bool)
    tokens, plain_tokens = [], []
    run, seen = emulated(step, model.params, cache, rows[0][: len(rows)], active)
    for _ in range(TOKENS):
        tokens.append(np.argmax(logits, -1).astype(np.int32))
        plain_tokens.append(np.argmax(plain_logits, -1).astype(np.int32))
        logits, cache = run(model.params, cache, tokens[-1], active)
        plain_logits, plain_cache = plain_step(load(checkpoint, "packed").params, plain_cache, plain_tokens[-1], active)
    np.testing.assert_array_equal(tokens, plain_tokens)
    assert seen == DECODE


@pytest.mark.slow
def test_nano_answers_a_question_through_emulated_kernels():
    """The whole answer, token for token that of XLA's forms."""
    llm = gj.LLM("nano", slots=1, context=512)
    wanted = llm.chat(QUESTION, gj.Sampling(temperature=0))
    model = gj.load("nano", dtype="bfloat16", experts="tiled", progress=False)
    prompt = np.array(harmony.render(model.tokenizer, [{"role": "user", "content": QUESTION}]), np.int32)
    first, step = programs(model.config)
    given = arguments(model, [prompt])
    logits, cache = emulated(first, *given)[0](*given)
    run, seen = emulated(step, model.params, cache, prompt[:1], np.ones(1, bool))
    tokens = []
    while not tokens or tokens[-1] not in model.config.eos_token_ids:
        tokens.append(int(np.argmax(logits[0])))
        assert len(tokens) <= 100
        logits, cache = run(model.params, cache, np.array(tokens[-1:], np.int32), np.ones(1, bool))
    assert tuple(tokens) == wanted.tokens and "85" in wanted.text
    assert seen == DECODE
