"""Hooks, captures and patches: every site of a whole pass."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from recorded_pass import ALL, TOKENS, T, plain, seen
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.hooks import add, capture, force_experts, layers_of, patch, replace, scale
from gptoss_jax.model.sites import SITES, sites
from gptoss_jax.model.transformer import extend, forward

EXACT = 1e-5  # as in test_goldens


@pytest.fixture(scope="module")
def model():
    return small_model()


def traced(model, hook, tokens=TOKENS):
    return jax.eval_shape(lambda params: forward(params, model.config, tokens, hook=hook), model.params)


def same(value):
    """The value, as an array that the model cannot know to be its own."""
    return value + jnp.zeros((), value.dtype)


# Sites


def test_a_hook_passes_every_site_in_order_with_its_shape(model):
    seen = []
    traced(model, lambda name, value: (seen.append((name, value.shape)), value)[1])
    assert [name for name, _ in seen] == sites(model.config)
    shapes = {name.removeprefix("layers.1."): shape for name, shape in seen}
    c = model.config
    assert shapes["attention.q"] == (3, T, c.num_attention_heads, c.head_dim)
    assert shapes["attention.k"] == shapes["attention.v"] == (3, T, c.num_key_value_heads, c.head_dim)
    assert shapes["moe.router_logits"] == (3, T, c.num_local_experts)
    assert shapes["moe.experts"] == shapes["moe.gates"] == (3, T, c.num_experts_per_tok)
    assert shapes["residual_mid"] == shapes["norm"] == (3, T, c.hidden_size)
    assert shapes["logits"] == (3, T, c.vocab_size)


def test_a_cached_pass_has_the_same_sites(model):
    seen = []
    hook = lambda name, value: (seen.append(name), value)[1]
    cache = init_cache(model.config, 3, T, chunk=T, dtype="float32")
    jax.eval_shape(lambda params: extend(params, model.config, cache, TOKENS, np.full(3, T, np.int32), hook=hook), model.params)
    assert seen == sites(model.config)[: -len(["norm", "logits"])]


def test_a_patch_at_any_site_changes_the_logits(model):
    names = sites(model.config)

    def patched(params, chosen):
        def hook(name, value):
            change = (chosen == names.index(name)).astype(value.dtype)
            if name.endswith("experts"):
                return (value + change) % value.dtype.type(model.config.num_local_experts)
            return value + change * value * value  # neither a shift nor a scale, which a softmax or a norm would not see

        return forward(params, model.config, TOKENS[:1], hook=hook)

    patched = jax.jit(patched)
    before = np.asarray(patched(model.params, np.int32(-1)))
    assert oracle.error(before, plain()[:1]) < EXACT
    unchanged = [name for i, name in enumerate(names) if oracle.error(patched(model.params, np.int32(i)), before) < 100 * EXACT]
    assert not unchanged


@pytest.mark.parametrize("wrong", [lambda x: x[..., :1], lambda x: x.astype(jnp.bfloat16), lambda x: None, lambda x: 0.0])
def test_a_hook_that_returns_another_kind_of_array_is_refused(model, wrong):
    hook = lambda name, value: wrong(value) if name == "layers.1.attention.q" else value
    with pytest.raises(ValueError, match=r"a hook must return an array like the one it got; layers\.1\.attention\.q is float32\("):
        traced(model, hook)


def test_hooks_that_only_look_cost_nothing(model):
    lowered = [
        jax.jit(lambda params, hook=hook: forward(params, model.config, TOKENS, hook=hook)).lower(model.params).as_text()
        for hook in (None, lambda name, value: value)
    ]
    assert lowered[0] == lowered[1]


@pytest.mark.thorough
def test_sites_on_request_are_computed_for_those_who_name_them(model):
    names = sites(model.config)
    _, got = jax.eval_shape(lambda params: capture(forward, ["*", "layers.0.*"])(params, model.config, TOKENS), model.params)
    assert got.keys() == set(names)
    assert seen()[1].keys() == set(sites(model.config, on_request=True))
    some = jax.eval_shape(lambda params: capture(forward, "layers.1.*.pattern")(params, model.config, TOKENS)[1], model.params)
    assert list(some) == ["layers.1.attention.pattern"]


def test_shapes_are_those_of_the_table(model):
    c = model.config
    letters = {
        "B": 3, "T": T, "S": T, "D": c.hidden_size, "N": c.num_attention_heads, "H": c.head_dim, "K": c.num_key_value_heads,
        "E": c.num_local_experts, "A": c.num_experts_per_tok, "V": c.vocab_size,
    }  # fmt: skip
    for name, value in seen()[1].items():
        site = SITES[name.replace("layers.0", "layers.{i}").replace("layers.1", "layers.{i}")]
        assert value.shape == tuple(letters[letter] for letter in site.shape.strip("[]").split(", ")), name
        assert value.dtype == (jnp.int32 if "int32" in site.meaning else jnp.float32), name


def test_a_capture_does_not_change_a_bit(model):
    assert np.array_equal(seen()[0], plain())


@pytest.mark.parametrize("layer", [0, 1])
def test_parts_add_up_to_wholes(model, layer):
    got = {name.removeprefix(f"layers.{layer}."): np.asarray(value) for name, value in seen()[1].items()}
    rows = got["attention.pattern"].sum(-1) + got["attention.sink_mass"]
    np.testing.assert_allclose(rows, 1, atol=1e-6)
    each = got["attention.head_outputs"].sum(2) + np.asarray(model.params.layers[layer].attention.out_bias)
    assert oracle.error(each, got["attention.out"]) < EXACT
    assert oracle.error((got["moe.expert_outputs"] * got["moe.gates"][..., None]).sum(2), got["moe.out"]) < EXACT
    assert oracle.error(got["residual_pre"] + got["attention.out"] + got["moe.out"], got["residual_post"]) < EXACT
    sinks = np.asarray(model.params.layers[layer].attention.sinks)
    np.testing.assert_allclose(np.exp(sinks - got["attention.scores_lse"]), got["attention.sink_mass"], rtol=1e-5)
    greatest = np.exp(got["attention.scores_max"] - got["attention.scores_lse"])
    np.testing.assert_allclose(greatest, got["attention.pattern"].max(-1), rtol=1e-4)
    window, age = model.config.window(layer), np.arange(T)[:, None] - np.arange(T)[None, :]
    hidden = (age < 0) | (age >= (window or T))
    assert np.all(got["attention.pattern"].swapaxes(1, 2)[..., hidden] == 0)
    assert np.all(got["attention.pattern"].swapaxes(1, 2)[..., ~hidden] > 0)


def test_statistics_of_long_sequences_come_in_parts(model, monkeypatch):
    from pallas_kernels.attention import weights

    monkeypatch.setattr(weights, "SCORES", 3 * model.config.num_attention_heads * T * 7)
    names = ["layers.*.attention.scores_max", "layers.*.attention.scores_lse"]
    _, got = jax.jit(capture(forward, names), static_argnames="config")(model.params, model.config, TOKENS)
    for name, value in got.items():
        assert oracle.error(value, seen()[1][name]) < EXACT, name


# Patches


@pytest.mark.parametrize("site", [name for name in [*SITES] if not SITES[name].fixed])
def test_a_patch_with_the_same_values_gives_the_same_logits(model, site):
    got = jax.jit(patch(forward, {site.replace("{i}", "*"): same}), static_argnames="config")(model.params, model.config, TOKENS)
    assert oracle.error(got, plain()) < EXACT


def test_a_patch_that_removes_attention_to_a_key(model):
    """The last token's logits without a look at token 5 are those of a pattern with a zero there, in every layer."""
    cut = lambda pattern: pattern.at[:, :, :, 5].set(0)
    changes = {"layers.*.attention.pattern": cut}
    logits, got = jax.jit(capture(patch(forward, changes), ALL), static_argnames="config")(model.params, model.config, TOKENS)
    assert oracle.error(logits[:, :5], plain()[:, :5]) < EXACT
    assert oracle.error(logits[:, -1], plain()[:, -1]) > 100 * EXACT
    assert np.all(np.asarray(got["layers.0.attention.pattern"])[..., 5] == 0)
    values = np.repeat(np.asarray(got["layers.0.attention.v"]), model.config.group, 2)  # [B, S, N, H]
    wanted = np.einsum("btns,bsnh->btnh", got["layers.0.attention.pattern"], values)
    assert oracle.error(got["layers.0.attention.heads"], wanted) < EXACT


def test_sinks_can_be_taken_away(model):
    """A sink of no weight is a logit of minus infinity."""
    got = jax.jit(patch(forward, {"layers.*.attention.sink_mass": 0.0}), static_argnames="config")(model.params, model.config, TOKENS)
    params = gj.substitute(model.params, {k: v - 1e4 for k, v in gj.select(model.params, "*.sinks").items()})
    assert oracle.error(got, jax.jit(forward, static_argnames="config")(params, model.config, TOKENS)) < EXACT


def test_experts_that_are_forced_get_gates_from_their_own_logits(model):
    rng, c = np.random.default_rng(1), model.config
    routes = np.stack([rng.permutation(c.num_local_experts)[: c.num_experts_per_tok] for _ in range(3 * T * 2)]).reshape(3, T, 2, -1)
    forced = jax.jit(capture(patch(forward, force_experts(routes)), "layers.*.moe.*"), static_argnames="config")
    _, got = forced(model.params, model.config, TOKENS)
    for i in (0, 1):
        assert np.array_equal(got[f"layers.{i}.moe.experts"], routes[:, :, i])
        own = np.take_along_axis(np.asarray(got[f"layers.{i}.moe.router_logits"]), routes[:, :, i], 2)
        np.testing.assert_allclose(got[f"layers.{i}.moe.gates"], jax.nn.softmax(own, -1), rtol=1e-5)


def test_routes_that_are_forced_again_give_the_same_bits(model):
    routes = layers_of(seen()[1], "moe.experts")  # [L, B, T, A]
    again = jax.jit(patch(forward, force_experts(jnp.moveaxis(routes, 0, 2))), static_argnames="config")
    assert np.array_equal(again(model.params, model.config, TOKENS), plain())


def test_an_expert_that_is_taken_away_leaves_its_share_to_the_others(model):
    E = model.config.num_local_experts
    changes = {"layers.1.moe.experts": lambda chosen: chosen.at[:, :, 0].set(E)}
    _, got = jax.jit(capture(patch(forward, changes), "layers.1.moe.*"), static_argnames="config")(model.params, model.config, TOKENS)
    gates = np.asarray(got["layers.1.moe.gates"])
    assert np.all(gates[..., 0] == 0)
    np.testing.assert_allclose(gates.sum(-1), 1, rtol=1e-6)
    none = {"layers.1.moe.experts": -1}
    _, got = jax.jit(capture(patch(forward, none), "layers.1.moe.*"), static_argnames="config")(model.params, model.config, TOKENS)
    assert not np.any(got["layers.1.moe.out"]) and not np.any(got["layers.1.moe.gates"])


def test_changes_and_their_places(model):
    value, vector = jnp.ones((2, 3, 4)), jnp.arange(4.0)
    assert np.array_equal(add(vector)(value), np.ones((2, 3, 4)) + np.arange(4))
    assert np.array_equal(add(vector, np.s_[:, -1])(value)[:, :2], np.ones((2, 2, 4)))
    assert np.array_equal(scale(0, np.s_[:, :, 1])(value).sum(), 18)
    assert np.array_equal(replace(vector, np.s_[1, 2])(value)[1, 2], np.arange(4))


def test_patches_follow_one_another_and_captures_see_what_flows_on(model):
    double, more = {"layers.0.residual_post": scale(2.0)}, {"layers.0.residual_post": add(1.0)}
    both = patch(patch(forward, double), more)
    wanted = 2 * np.asarray(seen()[1]["layers.0.residual_post"]) + 1
    for fn in (capture(both, "layers.0.residual_post"), patch(patch(capture(forward, "layers.0.residual_post"), double), more)):
        _, got = jax.jit(fn, static_argnames="config")(model.params, model.config, TOKENS)
        assert oracle.error(got["layers.0.residual_post"], wanted) < EXACT


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: capture(forward, []), "names must be at least one"),
        (lambda: capture(forward, "layers.0.residual"), r"similar names are layers\.0\.residual_pre"),
        (lambda: capture(forward, "layers.9.residual_pre"), "no site that was passed is named 'layers.9.residual_pre'"),
        (lambda: patch(forward, {"layers.0.attention.patern": 0.0}), r"similar names are layers\.0\.attention\.pattern"),
        (lambda: patch(forward, {"layers.0.attention.scores_max": 0.0}), "can be looked at, not patched"),
        (lambda: patch(forward, {"layers.0.attention.out": np.zeros(3, np.float32)}), r"has shape \(3, 24, 96\); got \(3,\)"),
        (lambda: patch(forward, {"layers.0.moe.experts": 1.0}), "holds integers"),
        (lambda: patch(forward, {"norm": lambda value: value[0]}), "a hook must return an array like the one it got"),
        (lambda: patch(forward, force_experts(np.zeros((3, 2)))), "experts must be integers"),
    ],
)
def test_mistakes_are_refused(model, make, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda params: make()(params, model.config, TOKENS), model.params)
