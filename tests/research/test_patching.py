"""Patching over a grid: the same numbers as a patch at a time, from few calls of one program, and what is refused before any."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import LAYERS, small_model

import gptoss_jax as gj
from gptoss_jax.research import patching
from gptoss_jax.research.patching import running

B, T = 2, 9
CLEAN = np.random.default_rng(3).integers(0, 320, (B, T), np.int32)
CORRUPT = CLEAN.copy()
CORRUPT[0, 4] = (CLEAN[0, 4] + 7) % 320
CORRUPT[1, 2] = (CLEAN[1, 2] + 7) % 320
CORRUPT[1, 6] = (CLEAN[1, 6] + 9) % 320
FIRST = (4, 2)  # a row's first token that differs
RIGHT, WRONG = np.array([5, 9]), 11
METRIC = patching.logit_difference(RIGHT, WRONG)


def grid(site, clean=CLEAN, corrupt=CORRUPT, metric=METRIC, fill=patching.grid, **options):
    model = small_model()
    options = ({"batch": 5} if fill is patching.grid else {}) | options
    return fill(model.params, model.config, clean, corrupt, metric, site, **options)


@functools.cache
def seen(name):
    model = small_model()
    run = jax.jit(gj.capture(gj.forward, name), static_argnums=1)
    return [run(model.params, model.config, tokens)[1][name] for tokens in (CLEAN, CORRUPT)]


@functools.cache
def with_value(name):
    """(tokens, value) -> the metric of a run with a site's value put in whole, of a program of its own."""

    def run(params, config, tokens, value):
        return METRIC(gj.patch(gj.forward, {name: value})(params, config, tokens)[:, -1])

    return functools.partial(jax.jit(run, static_argnums=1), small_model().params, small_model().config)


def one_at_a_time(name, at, into="corrupt"):
    clean, corrupt = (np.asarray(value) for value in seen(name))
    source, own, tokens = (clean, corrupt, CORRUPT) if into == "corrupt" else (corrupt, clean, CLEAN)
    value = own.copy()
    value[at] = source[at]
    return np.asarray(with_value(name)(tokens, value))


@pytest.mark.thorough
@pytest.mark.parametrize("into", ["corrupt", "clean"])
def test_each_cell_is_the_run_with_that_patch(into):
    effects = grid("residual_post", into=into)
    assert effects.measured.shape == (LAYERS, T, B) and effects.axes == ("layer", "position")
    for t in (2, 6, T - 1):
        wanted = one_at_a_time("layers.0.residual_post", np.s_[:, t], into)
        np.testing.assert_allclose(effects.measured[0, t], wanted, rtol=0, atol=2e-5)
    other = effects.clean if into == "corrupt" else effects.corrupt
    np.testing.assert_allclose(effects.measured[-1, -1], other, rtol=0, atol=2e-5)
    assert effects.normalised[-1, -1] == pytest.approx(float(into == "corrupt"), abs=1e-4)
    assert np.abs(effects.measured[0] - effects.corrupt).max() > 0.05


@pytest.mark.thorough
def test_what_cannot_have_changed_is_the_run_itself_to_the_bit():
    effects = grid("residual_post")
    for b, first in enumerate(FIRST):
        assert (effects.measured[:, :first, b] == effects.corrupt[b]).all()
        assert effects.measured[0, first, b] != effects.corrupt[b]
    assert (effects.normalised[:, : min(FIRST)] == 0).all()
    assert (effects.measured[-1, :-1] == effects.corrupt).all(), "the last layer's other tokens are not looked at"


@pytest.mark.thorough
def test_cells_are_data_and_not_programs():
    wanted = grid("residual_post")
    size = running._patched._cache_size()
    some = grid("residual_post", positions=[-1, 0, 5])
    other = grid("residual_post", metric=patching.logit_difference(RIGHT[::-1], WRONG), into="clean")
    assert running._patched._cache_size() == size
    assert np.array_equal(some.measured, wanted.measured[:, [-1, 0, 5]]) and not np.allclose(other.clean, wanted.clean)


@pytest.mark.thorough
def test_heads_at_all_places_together_and_at_each():
    site, heads = "attention.heads", small_model().config.num_attention_heads
    whole, each = (grid(site, by=by, layers=[0], positions=[4, 6]) for by in ("head", "position and head"))
    assert whole.measured.shape == (1, heads, B) and whole.axes == ("layer", "head")
    assert each.measured.shape == (1, 2, heads, B) and each.axes == ("layer", "position", "head")
    for head in (0, heads - 1):
        wanted = one_at_a_time("layers.0.attention.heads", np.s_[:, [4, 6], head])
        np.testing.assert_allclose(whole.measured[0, head], wanted, rtol=0, atol=2e-5)
        wanted = one_at_a_time("layers.0.attention.heads", np.s_[:, 6, head])
        np.testing.assert_allclose(each.measured[0, 1, head], wanted, rtol=0, atol=2e-5)
    assert len(np.unique(whole.measured[..., 0])) == heads


@pytest.mark.thorough
def test_metrics_of_several_tokens_and_of_ones_own():
    model, ids = small_model(), np.array([[3, 8], [4, 1]])
    asked = dict(layers=[0], positions=[6])
    logits = np.asarray(jax.jit(gj.forward, static_argnums=1)(model.params, model.config, CORRUPT))
    logprobs = np.asarray(jax.nn.log_softmax(logits, -1))
    several = grid("moe.out", metric=patching.log_probability(ids), at=range(-2, 0), **asked)
    wanted = [logprobs[b, T - 2, ids[b, 0]] + logprobs[b, T - 1, ids[b, 1]] for b in range(B)]
    np.testing.assert_allclose(several.corrupt, wanted, rtol=0, atol=2e-5)
    sites = ["moe.experts", "moe.gates"]  # one of them integers
    own = grid(sites, metric=lambda logits: jnp.max(logits), **asked)
    assert own.measured.shape == (2, 1, 1, 1) and own.axes == ("site", "layer", "position")
    assert own.corrupt == pytest.approx(logits[:, -1].max(), abs=2e-5)
    with pytest.raises(ValueError, match=r"answer must be one id for each of the logits, \(2,\); got \(3,\)"):
        grid("moe.out", metric=patching.log_probability([1, 2, 3]), **asked)
    with pytest.raises(ValueError, match=r"logit_difference takes the logits behind one token; got \(2, 2, \d+\)"):
        grid("moe.out", at=(-2, -1), **asked)
    with pytest.raises(ValueError, match=r"a metric must give a real number, or one for each of the 2 rows; got float32\(2, \d+\)"):
        grid("moe.out", metric=lambda logits: logits, **asked)


@pytest.mark.thorough
def test_an_estimate_is_the_slope_of_what_is_patched():
    effects = grid("residual_post", fill=patching.estimate)
    clean, corrupt = (np.asarray(value) for value in seen("layers.0.residual_post"))
    run = functools.partial(with_value("layers.0.residual_post"), CORRUPT)
    np.testing.assert_allclose(effects.corrupt, grid("residual_post").corrupt, rtol=0, atol=2e-5)
    for t in (4, 6):
        step = np.zeros_like(corrupt)
        step[:, t] = 1e-2 * (clean - corrupt)[:, t]
        slope = np.asarray(run(corrupt + step) - run(corrupt - step)) / 2e-2
        np.testing.assert_allclose(effects.measured[0, t] - effects.corrupt, slope, rtol=0.03, atol=2e-3)
    assert (effects.measured[:, : min(FIRST)] == effects.corrupt).all()


@pytest.mark.thorough
def test_estimates_agree_with_patches_on_nano():
    model = gj.load("nano", dtype="float32", progress=False)
    tokens = [model.tokenizer.encode(f"27+{last}: 7+{last[-1]}=") for last in ("58", "52")]
    metric = patching.logit_difference(*(model.tokenizer.encode(text)[0] for text in ("1", "9")))
    true, linear = (fill(model.params, model.config, *tokens, metric, "residual_post") for fill in (patching.grid, patching.estimate))
    assert linear.measured.shape == true.measured.shape and linear.axes == true.axes
    a, b = true.normalised.ravel(), linear.normalised.ravel()
    assert np.corrcoef(a, b)[0, 1] > 0.8
    large = np.abs(a) > 0.2
    assert large.any() and (np.sign(a[large]) == np.sign(b[large])).all()


# What is refused


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(clean=CLEAN[:, :-1]), r"clean and corrupt must be prompts of equal length, row by row; got \(2, 8\) and \(2, 9\)"),
        (dict(clean=CLEAN[0]), r"equal length, row by row; got \(1, 9\) and \(2, 9\)"),
        (dict(clean=[[1, 2], [3]]), r"clean must be token ids \[B, T\], rows of one length; got \[\[1, 2\], \[3\]\]"),
        (dict(clean=CLEAN * 1.0), r"clean must be token ids \[B, T\], or \[T\] of one prompt; got float64\(2, 9\)"),
        (dict(corrupt=None), r"corrupt must be token ids"),
        (dict(corrupt=CLEAN), r"clean and corrupt must differ in a token; got the same twice"),
        (dict(corrupt=CLEAN.astype(np.int64) + 10**12), r"token ids must lie in 0 \.\.\. "),
        (dict(site="residual"), r"site must be one of a layer, without the layer; got 'residual'; similar names are residual_"),
        (dict(site="embedding"), r"of the embedding pass 'residual_pre' with layers=\[0\]"),
        (dict(site="attention.scores_lse"), r"attention\.scores_lse can be looked at, not patched"),
        (dict(site=[]), r"site must be the name of a site, or several different ones; got \[\]"),
        (dict(site=["moe.out", "moe.out"]), r"several different ones"),
        (dict(by="heads"), r"by must be 'position', 'head', 'position and head'; got 'heads'"),
        (dict(by=["head"]), r"by must be 'position'"),
        (dict(by="head"), r"residual_post has no heads; by='head' takes attention\.q, attention\.k, .*; pass one"),
        (dict(by="head", site=["attention.q", "attention.k"]), r"sites of a grid by head must have as many heads; got \[10, 2\]"),
        (dict(layers=[2]), r"layers must be whole numbers from -2 to 1; got \[2\]; pass None for all"),
        (dict(layers=1), r"layers must be whole numbers from -2 to 1; got 1"),
        (dict(layers=[0, -2]), r"layers must be one at least, each once; got \[0, -2\]"),
        (dict(positions=[]), r"positions must be one at least|positions must be whole numbers"),
        (dict(positions=[-10]), r"positions must be whole numbers from -9 to 8"),
        (dict(positions=[0.5]), r"positions must be whole numbers from -9 to 8"),
        (dict(at=9), r"at must be whole numbers from -9 to 8; got \[9\]; pass -1 for the last token"),
        (dict(at=True), r"at must be whole numbers from -9 to 8; got True"),
        (dict(at=None), r"at must be whole numbers from -9 to 8; got None; pass -1"),
        (dict(at=[]), r"at must be "),
        (dict(into="both"), r"into must be 'corrupt' or 'clean'; got 'both'"),
        (dict(into=[]), r"into must be 'corrupt' or 'clean'"),
        (dict(batch=0), r"batch must be a whole number of cells from 1 on; got 0"),
        (dict(batch=2.0), r"batch must be a whole number"),
        (dict(metric=None), r"metric must be a function of logits; got None; pass logit_difference"),
        (dict(metric=patching.logit_difference(10**6, 0)), r"a metric's ids must lie in 0 \.\.\. .*; got 1,000,000"),
        (dict(metric=patching.log_probability(-1)), r"a metric's ids must lie in 0"),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        grid(**({"site": "residual_post"} | change))
    if "batch" not in change:
        with pytest.raises(ValueError, match=message):
            grid(**({"site": "residual_post", "fill": patching.estimate} | change))


@pytest.mark.parametrize("ids", [None, "a", [1.5], [[[1]]], [], [[1], [2, 3]], True])
def test_ids_that_are_none(ids):
    with pytest.raises(ValueError, match=r"right must be the id of a token, or ids by row; got"):
        patching.logit_difference(ids, 1)


def test_integers_have_no_slope():
    with pytest.raises(ValueError, match="an estimate needs a site of real numbers; moe.experts holds integers; use grid"):
        grid("moe.experts", fill=patching.estimate)


def test_runs_that_are_alike_have_no_scale():
    alike = patching.Effects(np.ones((2, 3, 1), np.float32), np.ones(1, np.float32), np.ones(1, np.float32), ("layer", "position"))
    assert alike.mean.shape == (2, 3)
    with pytest.raises(ValueError, match="the clean and the corrupt run must differ in the metric; got 1 and 1; pass prompts"):
        _ = alike.normalised


@pytest.mark.parametrize("high", [np.inf, np.nan])
def test_metrics_that_are_not_finite_have_no_scale(high):
    broken = patching.Effects(np.ones((2, 1), np.float32), np.full(1, high, np.float32), np.ones(1, np.float32), ("layer",))
    with pytest.raises(ValueError, match="the clean and the corrupt run must have finite metrics; got (inf|nan) and 1; mend the metric"):
        _ = broken.normalised
