"""Captures and patches under vmap, grad and remat, with the cache and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from recorded_pass import ALL, ON_REQUEST, TOKENS, T, plain, seen
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.hooks import add, capture, patch, scale
from gptoss_jax.model.transformer import decode_step, extend, forward, prefill

EXACT = 1e-5  # as in test_goldens


@pytest.fixture(scope="module")
def model():
    return small_model()


# Transformations


def test_capture_and_patch_under_vmap(model):
    """Each row with a vector of its own added is the batch, patched row by row."""
    vectors = np.random.default_rng(2).normal(size=(3, model.config.hidden_size)).astype(np.float32)

    def one(tokens, vector):
        return capture(patch(forward, {"layers.0.residual_mid": add(vector)}), "layers.1.residual_pre")(
            model.params, model.config, tokens[None]
        )

    logits, got = jax.jit(jax.vmap(one))(TOKENS, vectors)
    changes = {"layers.0.residual_mid": add(vectors[:, None])}
    wanted, at = jax.jit(capture(patch(forward, changes), "layers.1.residual_pre"), static_argnames="config")(
        model.params, model.config, TOKENS
    )
    assert oracle.error(logits[:, 0], wanted) < EXACT
    assert oracle.error(got["layers.1.residual_pre"][:, 0], at["layers.1.residual_pre"]) < EXACT


@pytest.mark.thorough
@pytest.mark.parametrize("remat", [False, True])
def test_capture_under_grad(model, remat):
    """Attribution by a gradient: that of a sum over a site with respect to what is added at an earlier one."""
    zero = jnp.zeros((3, T, model.config.hidden_size))

    def measure(delta):
        changes = {"layers.0.residual_post": add(delta)}
        run = capture(patch(forward, changes), ["layers.*.residual_post", "layers.1.attention.pattern"])
        logits, got = run(model.params, model.config, TOKENS, remat=remat)
        return jnp.sum(jnp.sin(got["layers.1.residual_post"][:, -1])), got

    slope, got = jax.jit(jax.grad(measure, has_aux=True))(zero)
    assert got.keys() == {"layers.0.residual_post", "layers.1.residual_post", "layers.1.attention.pattern"}
    assert oracle.error(got["layers.1.residual_post"], seen()[1]["layers.1.residual_post"]) < EXACT
    way = np.random.default_rng(3).normal(size=zero.shape).astype(np.float32)
    value = jax.jit(lambda step: measure(step * way)[0])
    difference = (value(np.float32(1e-3)) - value(np.float32(-1e-3))) / 2e-3  # few enough to change no token's experts
    assert float(jnp.sum(slope * way)) == pytest.approx(float(difference), rel=5e-3)


@pytest.mark.thorough
def test_rematerialised_derivatives_are_the_same(model):
    loss = lambda remat: lambda params: jnp.sum(jnp.sin(forward(params, model.config, TOKENS, remat=remat)))
    plainly, again = (jax.jit(jax.grad(loss(remat)))(model.params) for remat in (False, True))
    for name, grad in gj.select(plainly, "*").items():
        assert oracle.error(gj.select(again, name)[name], grad) < EXACT, name


@pytest.mark.thorough
def test_rematerialisation_keeps_less(model):
    loss = lambda remat: lambda params: jnp.sum(forward(params, model.config, np.tile(TOKENS, (4, 8)), remat=remat))
    used = [jax.jit(jax.grad(loss(remat))).lower(model.params).compile().memory_analysis().temp_size_in_bytes for remat in (False, True)]
    assert used[1] < 0.8 * used[0]


# With the cache


@pytest.mark.thorough
@pytest.mark.parametrize("page", [4, 16])
def test_every_site_with_the_cache_is_that_of_a_whole_pass(model, page):
    """A prompt in chunks, then single steps: each site, put together, is the one of `forward`; patterns are by position."""
    chunk, context = 8, 32
    cache = init_cache(model.config, 3, context, chunk=chunk, dtype="float32", page_size=page)
    append = jax.jit(capture(extend, ["embedding", "layers.*", *ON_REQUEST]), static_argnames="config")
    step = jax.jit(capture(decode_step, ALL), static_argnames="config")
    parts = []
    for start in range(0, 2 * chunk, chunk):
        (_, cache), got = append(model.params, model.config, cache, TOKENS[:, start : start + chunk], np.full(3, chunk, np.int32))
        parts.append(got)
    for t in range(2 * chunk, T):
        (logits, cache), got = step(model.params, model.config, cache, TOKENS[:, t], active=np.ones(3, bool))
        assert oracle.error(logits, plain()[:, t]) < EXACT
        parts.append(got)
    for name, wanted in seen()[1].items():
        if name in ("norm", "logits"):
            continue
        whole = np.concatenate([part[name] for part in parts], 1)
        if name.endswith("pattern"):
            assert whole.shape == (3, T, model.config.num_attention_heads, context) and not np.any(whole[..., T:])
            whole = whole[..., :T]
        if name.endswith("experts"):
            assert np.array_equal(whole, wanted), name
        else:
            assert oracle.error(whole, wanted) < EXACT, name


@pytest.mark.thorough
def test_a_patched_prompt_is_patched_in_every_later_step(model):
    """What is added to the prompt's residual stream changes the keys that later steps look at."""
    c, vector = model.config, np.random.default_rng(4).normal(size=model.config.hidden_size).astype(np.float32)
    changes = {"layers.0.residual_post": add(vector)}
    cache = init_cache(c, 3, 32, chunk=16, dtype="float32")
    _, cache = jax.jit(patch(prefill, changes), static_argnames="config")(model.params, c, cache, TOKENS[:, :16], np.full(3, 16, np.int32))
    step = jax.jit(decode_step, static_argnames="config")
    for t in range(16, 20):
        logits, cache = step(model.params, c, cache, TOKENS[:, t], active=np.ones(3, bool))
    only = {"layers.0.residual_post": add(vector, np.s_[:, :16])}
    wanted = jax.jit(patch(forward, only), static_argnames="config")(model.params, c, TOKENS)
    assert oracle.error(logits, wanted[:, 19]) < EXACT


def test_padding_is_seen_as_such(model):
    """Rows of a batch that append different numbers of tokens."""
    cache = init_cache(model.config, 3, 32, chunk=T, dtype="float32")
    counts = np.array([T, 10, 0], np.int32)
    run = jax.jit(capture(extend, ["layers.*.attention.pattern", "layers.*.moe.experts"]), static_argnames="config")
    _, got = run(model.params, model.config, cache, TOKENS, counts)
    assert oracle.error(got["layers.1.attention.pattern"][1, :10, :, :T], seen()[1]["layers.1.attention.pattern"][1, :10]) < EXACT
    assert np.all(np.asarray(got["layers.1.moe.experts"])[1, 10:] == model.config.num_local_experts)


# On a mesh


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [pytest.param((1, 2), marks=pytest.mark.slow), (2, 2)], ids=str)
def test_capture_and_patch_on_a_mesh(shape, tiny):
    """Every site of four rows on one device and on a mesh, plain and with changed sites of each kind."""
    tokens = np.concatenate([TOKENS, TOKENS[:1]])
    changes = {
        "layers.0.attention.pattern": lambda pattern: pattern.at[..., 3].set(0),
        "layers.1.attention.sink_mass": scale(0.5),
        "layers.2.attention.head_outputs": scale(0.0, np.s_[:, :, 1]),
        "layers.3.moe.expert_outputs": scale(0.5, np.s_[:, :, :, 1]),
    }
    run = jax.jit(capture(patch(forward, changes), ALL), static_argnames="config")
    alone, spread = (gj.load(tiny, dtype="float32", progress=False, mesh=mesh) for mesh in (None, gj.mesh(*shape)))
    (wanted, sites), (logits, got) = (run(model.params, model.config, tokens) for model in (alone, spread))
    assert oracle.error(logits, wanted) < EXACT
    for name, value in got.items():
        assert value.shape == sites[name].shape and oracle.error(value, sites[name]) < EXACT, name


@pytest.mark.thorough
def test_the_cache_s_sites_on_a_mesh(tiny):
    spread = gj.load(tiny, dtype="float32", progress=False, mesh=gj.mesh(2, 2))
    c = spread.config
    cache = init_cache(c, 4, 32, chunk=T, dtype="float32", page_size=8, partition=spread.params.partition)
    tokens = np.concatenate([TOKENS, TOKENS[:1]])
    run = jax.jit(capture(extend, "layers.*.attention.pattern"), static_argnames="config")
    _, got = run(spread.params, c, cache, tokens, np.full(4, T, np.int32))
    alone = gj.load(tiny, dtype="float32", progress=False)
    _, wanted = jax.jit(capture(forward, "layers.*.attention.pattern"), static_argnames="config")(alone.params, c, tokens)
    for name, value in got.items():
        assert oracle.error(value[..., :T], wanted[name]) < EXACT, name
