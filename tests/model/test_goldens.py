"""The model against golden logits of Hugging Face's and OpenAI's code, and against the float64 oracle.

The engine forms RoPE's angles in float32: at position p they are off by up to p * 2**-23 (a frequency's rounding and the
product's), 5e-5 radians at 400. Weighed over frequencies and keys this gives logits a relative error of 3e-6, as it does
Hugging Face's; `EXACT` leaves a factor of three.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from checkpoints.synthesize import write_checkpoint
import gptoss_jax as gj
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.transformer import decode_step, extend, forward, prefill, unembed

EXACT = 1e-5
run = jax.jit(forward, static_argnames=("config", "hook"))
load = functools.cache(functools.partial(gj.load, progress=False))


@pytest.fixture(scope="module")
def golden(tiny):
    return dict(np.load(tiny / "golden.npz"))


@pytest.fixture(scope="module")
def weights(tiny):
    return oracle.tensors(tiny)


def chunked_logits(model, tokens, chunk):
    """Logits [T, V] of one prompt that enters the cache chunk by chunk."""

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, cache, part, count):
        x, cache = extend(params, model.config, cache, part, count)
        return unembed(params, model.config, x)[0], cache

    cache = init_cache(model.config, 1, len(tokens), chunk=chunk, dtype=model.params.embedding.dtype, page_size=32)
    out = []
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        padded = np.pad(part, (0, chunk - len(part)))[None]
        logits, cache = step(model.params, cache, padded, np.array([len(part)], np.int32))
        out.append(np.asarray(logits)[: len(part)])
    return np.concatenate(out)


@pytest.mark.parametrize("layout, experts", [("", "packed"), ("", "stacked"), ("", "split"), ("original", "packed")])
def test_float32_logits_are_the_references(tiny, golden, layout, experts):
    model = load(tiny / layout, dtype="float32", experts=experts)
    logits = run(model.params, model.config, golden["tokens"][None])
    assert logits.dtype == jnp.float32
    assert oracle.error(logits[0], golden["logits_f32"]) < EXACT


@pytest.mark.parametrize("layout, experts", [("original", "split")])  # packed ones, of the other layout: below, in chunks
def test_bfloat16_logits_are_closer_to_float32_than_either_reference(tiny, golden, layout, experts):
    model = load(tiny / layout, dtype="bfloat16", experts=experts)
    logits = run(model.params, model.config, golden["tokens"][None])
    allowed = min(golden["transformers_bf16_error"], golden["openai_bf16_error"])
    assert oracle.error(logits[0], golden["logits_f32"]) <= allowed


@pytest.mark.quick("original-float32-split")
@pytest.mark.parametrize("layout, dtype, experts", [("original", "float32", "split"), ("", "bfloat16", "packed")])
def test_logits_through_the_cache_in_chunks(tiny, golden, layout, dtype, experts):
    model = load(tiny / layout, dtype=dtype, experts=experts)
    logits = chunked_logits(model, golden["tokens"], 48)
    allowed = EXACT if dtype == "float32" else min(golden["transformers_bf16_error"], golden["openai_bf16_error"])
    assert oracle.error(logits, golden["logits_f32"]) <= allowed


@pytest.mark.thorough
def test_greedy_tokens_by_prefill_and_decode_steps(tiny, golden):
    model = load(tiny, dtype="float32", experts="split")
    cache = init_cache(model.config, 1, 40, chunk=16, dtype="float32", page_size=8)
    start = jax.jit(prefill, static_argnames="config")
    step = jax.jit(decode_step, static_argnames="config")
    logits, cache = start(model.params, model.config, cache, golden["tokens"][None, :16], np.array([16], np.int32))
    out = []
    for _ in range(24):
        out.append(int(jnp.argmax(logits[0])))
        logits, cache = step(model.params, model.config, cache, np.array(out[-1:], np.int32), active=np.array([True]))
    assert out == golden["greedy_from_16"].tolist()


@pytest.mark.quick("packed")
@pytest.mark.parametrize("experts", ["packed", "stacked", "split"])
def test_greedy_tokens_by_generate(tiny, golden, experts):
    llm = gj.LLM(load(tiny, dtype="float32", experts=experts), slots=1, context=64)
    out = llm.generate(golden["tokens"][:16].tolist(), gj.Sampling(temperature=0, max_tokens=24))
    assert out.tokens == tuple(golden["greedy_from_16"].tolist())
    assert out.finish_reason == "length"


def test_the_oracle_agrees_with_the_references(tiny, golden, weights):
    config = gj.Config.from_json(tiny / "config.json")
    logits = oracle.forward(weights, config, golden["tokens"][:300])  # beyond the original context of 256
    assert oracle.error(logits, golden["logits_f32"][:300]) < EXACT


@pytest.mark.quick("{'rope_truncate': True}", "{'sliding_window': 17}")
@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 15},
        {"sliding_window": 17},
        {"rope_truncate": True},
        {"rope_factor": 1.0},
        {"rope_original_context": 12, "rope_factor": 8.0},  # nearly all positions lie past it
        {"num_experts_per_tok": 1, "swiglu_limit": 0.5},
        {"swiglu_alpha": 1.0},
        {"layer_types": ("full_attention", "sliding_attention")},
    ],
    ids=str,
)
def test_other_configs_agree_with_the_oracle(tiny, golden, weights, changes):
    base = gj.Config.from_json(tiny / "config.json")
    base = dataclasses.replace(base, num_hidden_layers=2, layer_types=base.layer_types[:2])
    config = dataclasses.replace(base, **changes)
    params = load(tiny, dtype="float32", experts="stacked").params
    params = params.replace(layers=params.layers[:2])
    tokens = golden["tokens"][:48]
    wanted = oracle.forward(weights, config, tokens)
    assert oracle.error(run(params, config, tokens[None])[0], wanted) < EXACT
    assert oracle.error(oracle.forward(weights, base, tokens), wanted) > 20 * EXACT  # the change would be seen


@pytest.mark.parametrize(
    "geometry",
    [
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32, "num_local_experts": 2, "num_experts_per_tok": 2},
        {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 16, "num_experts_per_tok": 4},
    ],
    ids=["G=1", "G=8"],
)
def test_other_geometries_agree_with_the_oracle(tmp_path, geometry):
    config = dataclasses.replace(gj.TINY, num_hidden_layers=2, layer_types=gj.TINY.layer_types[:2], **geometry)
    write_checkpoint(config, tmp_path)
    model = gj.load(tmp_path, dtype="float32", experts="split", progress=False)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 48, np.int32)
    wanted = oracle.forward(oracle.tensors(tmp_path), config, tokens)
    assert oracle.error(run(model.params, config, tokens[None])[0], wanted) < EXACT
