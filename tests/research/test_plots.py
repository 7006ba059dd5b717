"""Plots: what is drawn, and what a strip of tokens shows."""

from html.parser import HTMLParser
import math
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gptoss_jax.research import plots
from gptoss_jax.research.plots import canvas

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def drawn():
    """Every figure is drawn once, since some mistakes only show then."""
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def image(ax):
    [one] = ax.images
    return one


class Spans(HTMLParser):
    """The spans of a strip: (title, style, text)."""

    def __init__(self, strip):
        super().__init__()
        self.found, self.tags = [], set()
        self.feed(strip._repr_html_())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "span":
            attrs = dict(attrs)
            self.found.append([attrs["title"], attrs["style"], ""])

    def handle_data(self, data):
        self.found[-1][2] += data


# Texts of tokens


def test_every_token_has_a_visible_text(tokenizer):
    assert all(text and text.isprintable() and " " not in text for text in plots.token_texts(range(0, 400), tokenizer))
    ids = tokenizer.encode("a b\n\tc$$")
    assert "".join(plots.token_texts(ids, tokenizer)) == "a␣b↵⇥c$$"
    assert plots.token_texts([tokenizer.special["<|end|>"], 10**6], tokenizer) == ["<|end|>", "�"]


def test_bytes_that_are_no_text_alone_are_spelled(tokenizer):
    ids = tokenizer.encode("\N{ALCHEMICAL SYMBOL FOR GOLD}")  # more than one token in both vocabularies
    assert len(ids) > 1
    texts = plots.token_texts(ids, tokenizer)
    assert "".join(texts).replace("\\x", "") == "\N{ALCHEMICAL SYMBOL FOR GOLD}".encode().hex()


def test_without_a_tokenizer_tokens_are_their_ids():
    assert plots.token_texts(np.array([5, 7]), None) == ["5", "7"]


# Heat maps


def test_logit_lens(small):
    tokens = small.encode("a$b$")
    best = np.array([small.encode(text) for text in ("a$$ ", "xyz<")])
    logits = np.zeros((2, 4, small.vocab_size), np.float32)
    np.put_along_axis(logits, best[..., None], rng.uniform(2, 12, (2, 4, 1)).astype(np.float32), -1)
    ax = plots.plot_logit_lens(logits, small, tokens=tokens, layers=["first", "last"])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(image(ax).get_array(), p.max(-1), rtol=1e-5)
    assert [text.get_text() for text in ax.texts] == ["a", "$", "$", "␣", "x", "y", "z", "<"]
    assert [text.get_position() for text in ax.texts][5] == (1, 1)
    assert labels(ax.xaxis) == ["a", "$", "b", "$"] and labels(ax.yaxis) == ["first", "last"]


def test_expert_load_and_sink_mass_into_given_axes():
    _, axes = plt.subplots(1, 2)
    load, mass = rng.random((3, 5)), rng.random((3, 2))
    assert plots.plot_expert_load(load, ax=axes[0]) is axes[0] and plots.plot_sink_mass(mass, ax=axes[1]) is axes[1]
    for ax, values, name in zip(axes, (load, mass), ("expert", "head"), strict=True):
        np.testing.assert_array_equal(image(ax).get_array(), values)
        assert image(ax).get_clim() == (0, 1)
        assert ax.get_xlabel() == name and labels(ax.yaxis) == ["0", "1", "2"]


@pytest.mark.parametrize("count", [6, 16, 128])
def test_token_experts(small, count):
    tokens = small.encode("a b")
    experts = np.argsort(rng.random((2, 3, count)), -1)[..., :3]
    experts[1, 2] = count  # a token that is not routed
    gates = rng.dirichlet(np.ones(3), (2, 3))
    ax = plots.plot_token_experts(experts, gates, count, tokens=tokens, tokenizer=small)
    got = image(ax).get_array()
    assert got.shape == (6, 3)
    for layer, token, choice in np.ndindex(experts.shape):
        row = layer * 3 + choice
        assert image(ax).get_alpha()[row, token] == gates[layer, token, choice]
        assert got.mask[row, token] if experts[layer, token, choice] == count else got[row, token] == experts[layer, token, choice]
    assert len({image(ax).cmap(image(ax).norm(i)) for i in range(count)}) == count
    assert list(ax.get_yticks()) == [1, 4] and labels(ax.yaxis) == ["0", "1"] and labels(ax.xaxis) == ["a", "␣", "b"]


def test_attention():
    pattern = rng.random((4, 2, 4))
    texts = ["$", "a", "$", "\\xe2"]
    ax = plots.plot_attention(pattern, texts, head=1)
    np.testing.assert_array_equal(image(ax).get_array(), pattern[:, 1])
    assert labels(ax.xaxis) == labels(ax.yaxis) == texts and ax.get_title() == "head 1"
    mean = image(plots.plot_attention(pattern, vmax=0.5))
    np.testing.assert_allclose(mean.get_array(), pattern.mean(1))
    assert mean.get_clim() == (0, 0.5) and image(ax).get_clim() == (0, pattern[:, 1].max())


def test_patching(small):
    effects = np.array([[0.0, 0.5, np.nan, 2.0], [0.1, -1.5, 0.0, 1.0]], np.float32)
    ax = plots.plot_patching(effects, small, tokens=small.encode("a$b$"), rows=["embedding", "layer 0"])
    assert image(ax).get_clim() == (-2, 2) and image(ax).get_array().mask.tolist() == [[False, False, True, False], [False] * 4]
    assert labels(ax.xaxis) == ["a", "$", "b", "$"] and labels(ax.yaxis) == ["embedding", "layer 0"] and ax.get_ylabel() == ""
    ax = plots.plot_patching(effects / 4, columns="head", most=0.5)
    assert image(ax).get_clim() == (-0.5, 0.5) and ax.get_xlabel() == "head" and ax.get_ylabel() == "layer"
    assert image(plots.plot_patching(np.full((1, 2), np.inf))).get_clim() == (-1, 1)
    with pytest.raises(ValueError, match=r"effects must be \[layers, columns\], of one site; .*; got \(2, 2, 4\)"):
        plots.plot_patching(np.stack([effects, effects]))
    with pytest.raises(ValueError, match=r"rows must be one name for each of the 2 rows; got 1"):
        plots.plot_patching(effects, rows=["a"])
    for most in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"most must be an effect above 0; got .*; leave it out for 1"):
            plots.plot_patching(effects, most=most)
    for none in (effects * 1j, effects.astype(str)):
        with pytest.raises(ValueError, match=r"effects must be real numbers \[layers, columns\]"):
            plots.plot_patching(none)
    with pytest.raises(ValueError, match=r"effects must be \[layers, columns\], of one site; .*; got \[\[1\], \[2, 3\]\]"):
        plots.plot_patching([[1], [2, 3]])
    with pytest.raises(ValueError, match=r"effects must have a layer and a column; got \(0, 4\)"):
        plots.plot_patching(effects[:0])


def test_wrong_shapes_say_which_is_meant(small):
    with pytest.raises(ValueError, match=r"logits must be \[layers, T, V\]; take one row of the batch.*got \(2, 1, 4, 9\)"):
        plots.plot_logit_lens(np.zeros((2, 1, 4, 9)), None)
    with pytest.raises(ValueError, match=r"tokens must be one for each of the 4 columns; got 3"):
        plots.plot_logit_lens(np.zeros((2, 4, 9)), None, tokens=[1, 2, 3])
    with pytest.raises(ValueError, match=r"pattern must be \[T, N, S\].*got \(1, 4, 2, 4\)"):
        plots.plot_attention(np.zeros((1, 4, 2, 4)))
    with pytest.raises(ValueError, match=r"gates must be \[L, T, A\] as experts, \(2, 3, 2\); got \(2, 3, 1\)"):
        plots.plot_token_experts(np.zeros((2, 3, 2), int), np.zeros((2, 3, 1)), 4)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'gptoss-jax\[notebooks\]'"):
        plots.plot_expert_load(np.zeros((2, 2)))


def test_many_layers_and_experts_are_not_all_numbered():
    ax = plots.plot_expert_load(rng.random((36, 128)))
    assert 2 < len(ax.get_yticks()) < 20 and all(tick == int(tick) for tick in ax.get_xticks())


def test_long_names_are_cut(small):
    ax = plots.plot_attention(np.zeros((1, 1, 1)), ["a" * 40])
    assert labels(ax.xaxis) == ["a" * 15 + "…"]


# Strips


def test_a_strip_shows_every_token_with_its_tooltip(small):
    tokens = [*small.encode('<b>&"\n'), small.special["<|end|>"]]
    logprobs = [0.0, -0.001, -1.0, -2.5, -5.0, -20.0, -0.5]
    tops = [{token: logprob, tokens[0]: -3.0} for token, logprob in zip(tokens, logprobs, strict=True)]
    strip = plots.token_strip(tokens, logprobs, small, top_logprobs=tops, lowest=-5)
    spans = Spans(strip)
    assert [text for _, _, text in spans.found] == ["<", "b", ">", "&", '"', "↵", "<|end|>"]
    assert spans.tags == {"div", "span", "br"}, "nothing of a token became markup"
    assert spans.found[2][0] == f"id {tokens[2]}\n-1.000 (36.8%)\n>  -1.000 (36.8%)\n<  -3.000 (5.0%)"
    opacity = [float(style.partition("rgba(")[2].partition(")")[0].split(",")[3]) for _, style, _ in spans.found]
    assert opacity[0] == opacity[1] < 0.13 and opacity[4] == opacity[5] == 0.6
    assert opacity[2] == 0.12 and opacity[3] == 0.3
    assert repr(strip).splitlines() == ["< 0.00", "b 0.00", "> -1.00", "& -2.50", '" -5.00', "↵ -20.00", "<|end|> -0.50"]


def test_a_strip_needs_nothing_from_elsewhere_and_leaves_the_text_s_colour(small):
    page = plots.token_strip(small.encode("abc"), [-1, -2, -3], small)._repr_html_()
    for foreign in ("http", "url(", "<script", "<style", "<img", "; color", '"color'):
        assert foreign not in page


def test_a_strip_of_bytes_that_are_no_text_alone(tokenizer):
    ids = tokenizer.encode("\N{ALCHEMICAL SYMBOL FOR GOLD}")
    strip = plots.token_strip(ids, [-1.0] * len(ids), tokenizer)
    assert "".join(text for _, _, text in Spans(strip).found).replace("\\x", "") == "f09f9c9a"
    strip._repr_html_().encode()


def test_the_first_token_of_a_prompt_has_no_probability(small):
    strip = plots.token_strip(small.encode("ab"), np.array([-1.0], np.float32), small)
    assert math.isnan(strip.logprobs[0]) and repr(strip).splitlines() == ["a", "b -1.00"]
    assert Spans(strip).found[0][0] == f"id {strip.tokens[0]}" and "background: none" in Spans(strip).found[0][1]


def test_impossible_tokens_are_coloured_in_full(small):
    strip = plots.token_strip(small.encode("a"), [-math.inf], small)
    assert "0.60)" in Spans(strip).found[0][1] and "-inf (0.0%)" in Spans(strip).found[0][0]


def test_a_strip_refuses_what_does_not_belong_together(small):
    ids = small.encode("abc")
    with pytest.raises(ValueError, match=r"logprobs must be one for each of the 3 tokens, or of those after the first; got 1"):
        plots.token_strip(ids, [-1.0], small)
    with pytest.raises(ValueError, match=r"top_logprobs must be one for each of the 3 logprobs, of the same call; got 2"):
        plots.token_strip(ids, [-1.0] * 3, small, top_logprobs=[{}, {}])
    with pytest.raises(ValueError, match="lowest must be a log-probability below 0; got 0"):
        plots.token_strip(ids, [-1.0] * 3, small, lowest=0)


def test_without_a_window_a_figure_can_still_be_saved(monkeypatch, caplog, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("no display name and no $DISPLAY environment variable")

    monkeypatch.setattr(canvas.pyplot(), "figure", fail)
    ax = canvas.axes(4, 3)
    ax.plot([1, 2])
    ax.figure.savefig(tmp_path / "saved.png")
    assert (tmp_path / "saved.png").stat().st_size > 1000
    assert "Matplotlib's backend cannot be used (RuntimeError: no display name" in caplog.text
