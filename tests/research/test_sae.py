"""Sparse autoencoders against SAELens' own numbers (benchmarks/peers/lens_golden.py), and changes that go through their features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import DIRECTORY, small_model

import gptoss_jax as gj
from gptoss_jax.research import sae
from gptoss_jax.research.sae import autoencoder

ALL = ("standard", "gated", "jumprelu", "topk")
EXACT = 2e-6
every = pytest.mark.parametrize("kind", ALL)
quick = pytest.mark.quick("standard")  # a program of each kind


@functools.cache
def loaded(kind: str) -> sae.SAE:
    return sae.load(DIRECTORY.parent / "sae" / kind)


@functools.cache
def golden(kind: str) -> dict[str, np.ndarray]:
    return dict(np.load(DIRECTORY.parent / "sae" / kind / "golden.npz"))


@functools.cache
def computed(kind: str) -> dict[str, np.ndarray]:
    """Everything of one kind, in one program."""

    def run(own, x, a, b):
        features = sae.encode(own, x)
        rest = x - sae.decode(own, features, x)
        through = lambda features: sae.decode(own, features, x)
        double = lambda features: features.at[..., a].multiply(2)
        return {
            "features": features,
            "decoded": through(features),
            "reconstruction": sae.reconstruct(own, x),
            "some": sae.encode(own, x, only=[5, 3, 5]),
            "clamped": sae.clamp(own, [a, b], [0.0, 1.5])(x),
            "clamped, wanted": through(features.at[..., a].set(0).at[..., b].set(1.5)) + rest,
            "steered": sae.steer(own, a, -2.0)(x),
            "steered, wanted": through(features.at[..., a].add(-2)) + rest,
            "spliced": sae.spliced(own, double)(x),
            "spliced, wanted": through(double(features)),
            "with error": sae.spliced(own, double, error=True)(x),
            "with error, wanted": through(double(features)) + rest,
            "nothing": sae.spliced(own, lambda features: features, error=True)(x),
            "in its place": sae.spliced(own)(x),
        }

    active = int((golden(kind)["features"] > 0).sum((0, 1)).argmax())
    return jax.device_get(jax.jit(run, static_argnums=(2, 3))(loaded(kind), golden(kind)["x"], active, (active + 1) % 128)) | {
        "active": active
    }


def off(got, wanted) -> float:
    return float(np.abs(np.asarray(got) - wanted).max() / np.abs(wanted).max())


# Numbers


@quick
@every
def test_features_and_reconstruction_are_those_of_saelens(kind):
    got, wanted = computed(kind), golden(kind)
    assert off(got["features"], wanted["features"]) < EXACT
    assert np.array_equal(got["features"] > 0, wanted["features"] > 0)
    assert off(got["decoded"], wanted["reconstruction"]) < EXACT
    assert off(got["reconstruction"], wanted["reconstruction"]) < EXACT
    assert off(got["in its place"], wanted["reconstruction"]) < EXACT


@quick
@every
def test_some_features_alone(kind):
    assert off(computed(kind)["some"], golden(kind)["features"][..., [5, 3, 5]]) < EXACT


@pytest.mark.quick("clamped-standard", "steered-standard", "spliced-standard", "with error-standard")
@every
@pytest.mark.parametrize("what", ["clamped", "steered", "spliced", "with error"])
def test_changes_are_what_decoding_other_features_gives(kind, what):
    got = computed(kind)
    assert off(got[what], got[f"{what}, wanted"]) < 5 * EXACT
    assert off(got[what], golden(kind)["x"]) > 1e-2


@quick
@every
def test_what_is_not_changed_stays_to_the_bit(kind):
    assert np.array_equal(computed(kind)["nothing"], golden(kind)["x"])
    where = np.s_[:, 1]
    x = jnp.asarray(golden(kind)["x"])
    got = np.array(sae.steer(loaded(kind), computed(kind)["active"], 3.0, at=where)(x))
    assert off(got[where], golden(kind)["x"][where]) > 1e-2
    got[where] = golden(kind)["x"][where]
    assert np.array_equal(got, golden(kind)["x"])


@pytest.mark.thorough
@pytest.mark.parametrize("norm", ["constant_norm_rescale", "layer_norm"])
def test_a_value_that_was_taken_away_is_read_too(norm):
    own, nothing = loaded("topk").replace(normalisation=norm), jnp.zeros((1, 2, 96))
    assert np.isfinite(sae.encode(own, nothing)).all()
    assert np.isfinite(sae.reconstruct(own, nothing)).all()
    assert (sae.clamp(own, 3, 2.0)(nothing) == 0).all()


def test_heads_are_read_as_one_vector():
    own = loaded("standard").replace(heads=True)
    x = golden("standard")["x"].reshape(2, 3, 6, 16)
    assert np.array_equal(sae.encode(own, x), sae.encode(loaded("standard"), golden("standard")["x"]))
    got = sae.reconstruct(own, x)
    assert got.shape == x.shape and off(got.reshape(2, 3, -1), golden("standard")["reconstruction"]) < EXACT
    assert sae.clamp(own, 3, 0.0)(jnp.asarray(x)).shape == sae.steer(own, 3, 1.0)(jnp.asarray(x)).shape == x.shape


@pytest.mark.thorough
def test_weights_in_bfloat16_are_multiplied_as_they_are():
    """Products of bfloat16 rounded values, added up in float32."""
    half = lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
    own = jax.tree.map(lambda x: x.astype(jnp.bfloat16), loaded("standard"))
    x = golden("standard")["x"]
    wanted = np.maximum(half(x - half(own.b_dec)) @ half(own.w_enc) + half(own.b_enc), 0)
    got = sae.encode(own, x)
    assert got.dtype == jnp.float32 and off(got, wanted) < EXACT


@pytest.mark.thorough
def test_a_large_one_holds_its_features_once_at_most():
    """`encode` its result, [B, T, d_sae] in float32, and no second array of that size; the others not even one."""
    B, T, D, F = 8, 1024, 16, 1 << 15
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    x, size = shaped(B, T, D), B * T * F * 4
    for kind, options in (("jumprelu", {"threshold": shaped(F)}), ("topk", {"k": 8})):
        own = sae.SAE(shaped(D, F), shaped(F), shaped(F, D), shaped(D), architecture=kind, **options)
        for run, most in ((sae.encode, 1.3), (sae.reconstruct, 0.3), (lambda own, x: sae.clamp(own, 3, 0.0)(x), 0.3)):
            used = jax.jit(run).lower(own, x).compile().memory_analysis()
            assert used.temp_size_in_bytes + used.output_size_in_bytes < most * size, kind


@pytest.mark.thorough
def test_many_positions_go_through_in_blocks(monkeypatch):
    monkeypatch.setattr(autoencoder, "_AT_ONCE", 128 * 4)  # of six positions
    for kind in ("gated", "topk"):
        own, wanted = loaded(kind), golden(kind)
        assert off(sae.encode(own, wanted["x"]), wanted["features"]) < EXACT
        assert off(sae.reconstruct(own, wanted["x"]), wanted["reconstruction"]) < EXACT


# At a site


@pytest.mark.thorough
def test_a_site_of_the_model_goes_through_it():
    """Nothing changed gives the same logits to the bit; without the error, those of the reconstruction; a clamp, those of a patch."""
    model, own = small_model(), loaded("jumprelu")
    tokens = np.random.default_rng(1).integers(0, 320, (2, 6), np.int32)

    @jax.jit
    def run(params):
        forward = lambda changes: gj.patch(gj.forward, changes)(params, model.config, tokens)
        plain, seen = gj.capture(gj.forward, own.hook_name)(params, model.config, tokens)
        value = seen[own.hook_name]
        return {
            "plain": plain,
            "same": forward({own.hook_name: sae.spliced(own, lambda features: features, error=True)}),
            "through": forward({own.hook_name: sae.spliced(own)}),
            "put": forward({"layers.1.residual_post": sae.reconstruct(own, value)}),
            "clamped": forward({own.hook_name: sae.clamp(own, 7, 9.0)}),
            "set": forward({"layers.1.residual_post": sae.clamp(own, 7, 9.0)(value)}),
        }

    got = run(model.params)
    assert own.hook_name == "blocks.1.hook_resid_post"
    assert np.array_equal(got["plain"], got["same"])
    assert off(got["through"], np.asarray(got["put"])) < 1e-5 and off(got["through"], np.asarray(got["plain"])) > 0.05
    assert off(got["clamped"], np.asarray(got["set"])) < 1e-5 and off(got["clamped"], np.asarray(got["plain"])) > 0.05


# Refusals

OWN = functools.partial(loaded, "standard")


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: sae.encode(OWN(), np.zeros((2, 64), np.float32)), r"as wide as itself, \[\.\.\., 96\]; got \(2, 64\); .*blocks\.1\.hook"),
        (lambda: sae.encode(OWN(), np.float32(3)), r"as wide as itself, \[\.\.\., 96\]; got float32"),
        (lambda: sae.encode(OWN(), None), "as wide as itself"),
        (lambda: sae.steer(OWN(), 3, 1.0)(jnp.zeros((2, 64))), "as wide as itself"),
        (lambda: sae.encode(OWN().replace(heads=True), np.zeros((2, 5, 16), np.float32)), "N x H = 96"),
        (lambda: sae.encode(OWN(), golden("standard")["x"], only=[128]), "features must be some of 0 ... 127; got"),
        (lambda: sae.clamp(OWN(), -1, 0.0), "features must be some of 0 ... 127"),
        (lambda: sae.clamp(OWN(), [], 0.0), "features must be some of 0 ... 127"),
        (lambda: sae.clamp(OWN(), 1.5, 0.0), "features must be some of 0 ... 127"),
        (lambda: sae.clamp(OWN(), "one", 0.0), "features must be some of 0 ... 127"),
        (lambda: sae.clamp(OWN(), True, 0.0), "features must be some of 0 ... 127"),
        (lambda: sae.clamp(OWN(), [[1], [2, 3]], 0.0), "features must be some of 0 ... 127"),
        (lambda: sae.clamp(OWN(), [1, 2], [1.0, 2.0, 3.0]), "to must be a finite activation, or one for each of 2 features"),
        (lambda: sae.steer(OWN(), 1, "much"), "by must be a finite activation"),
        (lambda: sae.steer(OWN(), 1, float("nan")), "by must be a finite activation"),
        (lambda: sae.clamp(OWN(), [3, 4, 3], 0.0), "features must be named once each"),
        (lambda: sae.steer("sae", 1, 1.0), "sae must be a sparse autoencoder; got a str"),
        (lambda: sae.steer(OWN(), 1, 1.0, at=np.s_[:, :, :, 0])(jnp.zeros((1, 2, 96))), r"at must index a value \(1, 2, 96\)"),
        (lambda: sae.steer(OWN(), 1, 1.0, at=np.s_[:, 2])(jnp.zeros((1, 2, 96))), r"at must index a value \(1, 2, 96\)"),
        (lambda: sae.clamp(OWN(), 1, 1.0, at=np.s_[:, [0, 5]])(jnp.zeros((1, 2, 96))), r"at must index a value \(1, 2, 96\)"),
        (lambda: sae.encode({}, 1), "sae must be a sparse autoencoder; got a dict"),
        (lambda: sae.decode(None, 1), "sae must be a sparse autoencoder; got a NoneType"),
        (lambda: sae.encode(OWN().replace(architecture="x"), 1), "the architecture of an SAE must be standard, .*; got 'x'"),
        (lambda: sae.encode(OWN().replace(normalisation=[]), 1), "the normalisation of an SAE must be none, "),
        (lambda: sae.encode(OWN().replace(architecture="jumprelu"), 1), r"a jumprelu SAE must have .* threshold; got threshold None"),
        (lambda: sae.encode(OWN().replace(w_dec=jnp.zeros((96, 128))), 1), r"w_dec \[d_sae, d_in\].*; got w_dec \(96, 128\)"),
        (lambda: sae.encode(OWN().replace(w_enc=3), 1), "a standard SAE must have .*; got w_enc 3"),
        (lambda: sae.encode(OWN().replace(architecture="topk", k=129), 1), r"k of a topk SAE must be .* 1 \.\.\. 128; got 129"),
        (lambda: sae.encode(OWN().replace(threshold=jnp.zeros(128)), 1), "a standard SAE must have .*; got also threshold; name its arch"),
        (lambda: sae.encode(OWN().replace(k=3, by_decoder_norm=True), 1), "got also k, by_decoder_norm"),
        (lambda: sae.encode(OWN().replace(b_dec_first="no"), 1), "b_dec_first of an SAE must be True or False; got 'no'"),
        (lambda: sae.encode(OWN().replace(hook_name=3), 1), "hook_name of an SAE must be a site's name; got 3"),
        (lambda: sae.encode(OWN(), np.zeros((2, 96), complex)), "an SAE reads real numbers; got complex128"),
        (lambda: sae.spliced(OWN(), 3), "change must be a function of features; got 3"),
        (lambda: sae.spliced(OWN(), lambda f: f[..., :3])(jnp.zeros((1, 96))), r"must return as many, \(1, 128\); got \(1, 3\)"),
        (lambda: sae.spliced(OWN(), lambda f: None)(jnp.zeros((1, 96))), r"must return as many, \(1, 128\); got NoneType"),
        (lambda: sae.decode(loaded("topk"), jnp.zeros((1, 128))), "decode needs x, for this SAE normalises"),
        (lambda: sae.decode(OWN(), jnp.zeros((1, 96))), r"features must be \[\.\.\., 128\]; got \(1, 96\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(wrong, words):
    with pytest.raises(ValueError, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
