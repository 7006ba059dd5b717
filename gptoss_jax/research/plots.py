"""Plots of what lenses and log-probabilities say, for notebooks. Host arrays and token ids in, a Matplotlib Axes or HTML out.

Matplotlib is imported when something is drawn: the package does not need it (extra `notebooks`).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import html
import math
from typing import TYPE_CHECKING

import numpy as np

from gptoss_jax.research import canvas
from gptoss_jax.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣"}
_SURE = "rgba(128, 128, 128, 0.12)"


def token_texts(tokens: Sequence[int], tokenizer: Tokenizer | None) -> list[str]:
    """A visible text of each token by itself; without a tokenizer its id.

    Blanks and line ends become signs, and bytes that are no UTF-8 by themselves such as "\\xe2".
    """
    return [str(int(token)) if tokenizer is None else _text(int(token), tokenizer) for token in tokens]


def plot_logit_lens(
    logits: np.ndarray,
    tokenizer: Tokenizer | None,
    *,
    tokens: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """What each layer would say next at each position: its most probable token, coloured by the token's probability.

    Args:
      logits: [layers, T, V] float32, one row of `lenses.logit_lens`.
      tokens: the T tokens that were read, below the columns.
      layers: a name for each of the layers; None numbers them.
    """
    logits = _checked("logits", logits, 3, "[layers, T, V]; take one row of the batch, logits[:, 0]")
    best = logits.argmax(-1)
    probability = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    ax = _heat(ax, probability, "probability", cmap="Blues", vmax=1, wide=0.44)
    for (layer, place), token in np.ndenumerate(best):
        [text] = token_texts([token], tokenizer)
        text = _short(text.removeprefix("<|").removesuffix("|>"), 7)
        colour = "white" if probability[layer, place] > 0.6 else "black"
        ax.text(place, layer, text, ha="center", va="center", color=colour, fontsize=7, parse_math=False)
    _number(ax.yaxis, "layer", len(logits))
    if layers is not None:
        ax.set_yticks(range(len(logits)), layers)
    _name_tokens(ax, tokens, tokenizer, logits.shape[1])
    return ax


def plot_expert_load(load: np.ndarray, *, ax: "Axes | None" = None) -> "Axes":
    """Share of the tokens that went to each expert, layers by experts.

    Args:
      load: [L, E], of `lenses.expert_load`.
    """
    load = _checked("load", load, 2, "[L, E], of lenses.expert_load")
    return _by_layer(ax, load, "share of tokens", "expert")


def plot_token_experts(
    experts: np.ndarray,
    gates: np.ndarray,
    num_experts: int,
    *,
    tokens: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Which experts each token went to: one stripe for each choice in each layer, in the expert's colour, as opaque as its gate.

    Args:
      experts: [L, T, A] integers, one row of `layers_of(values, "moe.experts")`. E or more is left white.
      gates: [L, T, A] float32, of "moe.gates".
      tokens, tokenizer: names for the columns.
    """
    experts = _checked("experts", experts, 3, "[L, T, A]; take one row of the batch, experts[:, 0]")
    gates = np.asarray(gates)
    L, T, A = experts.shape
    if gates.shape != experts.shape:
        raise ValueError(f"gates must be [L, T, A] as experts, {experts.shape}; got {gates.shape}; capture both in one call.")
    stripes = lambda x: np.moveaxis(x, 2, 1).reshape(L * A, T)
    ids = np.ma.masked_greater_equal(stripes(experts), num_experts)
    ax = _heat(ax, ids, "expert", cmap=_expert_colours(num_experts), vmin=-0.5, vmax=num_experts - 0.5, alpha=stripes(gates))
    if num_experts <= 20:
        ax.images[-1].colorbar.set_ticks(range(num_experts))
    for layer in range(1, L):
        ax.axhline(layer * A - 0.5, color="white", linewidth=2)
    ax.set_yticks([layer * A + (A - 1) / 2 for layer in range(L)], range(L))
    ax.set_ylabel("layer")
    _name_tokens(ax, tokens, tokenizer, T)
    return ax


def plot_sink_mass(mass: np.ndarray, *, ax: "Axes | None" = None) -> "Axes":
    """Share of attention that goes to each head's sink, layers by heads.

    Args:
      mass: [L, N], of `lenses.sink_mass_by_head`.
    """
    mass = _checked("mass", mass, 2, "[L, N], of lenses.sink_mass_by_head")
    return _by_layer(ax, mass, "mass of the sink", "head")


def plot_attention(
    pattern: np.ndarray,
    texts: Sequence[str] | None = None,
    *,
    head: int | None = None,
    vmax: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """How much each query (row) attends to each key (column). A row adds up to 1 less what the sink takes.

    Args:
      pattern: [T, N, S] float32, one row of "attention.pattern".
      texts: of the T = S tokens, see `token_texts`.
      head: None for the mean of all heads.
      vmax: the weight from which on the colour is full; None for the greatest. A small one shows small weights.
    """
    pattern = _checked("pattern", pattern, 3, "[T, N, S]; take one row of the batch, pattern[0]")
    one = pattern.mean(1) if head is None else pattern[:, head]
    ax = _heat(ax, one, "weight", cmap="Blues", vmax=vmax, tall=0.14, wide=0.14)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.set_title("mean of the heads" if head is None else f"head {head}", fontsize=9)
    if texts is not None:
        _label(ax.xaxis, texts, 6, rotation=90)
        _label(ax.yaxis, texts, 6)
    return ax


@dataclasses.dataclass(frozen=True, repr=False)
class TokenStrip:
    """Tokens in a row, the less probable the more coloured. A notebook shows it as HTML, `repr` as text.

    Attributes:
      texts: of each token, as it is shown.
      tokens: ids.
      logprobs: natural logs; NaN where nothing is known.
      tooltips: what is shown when the mouse is over a token.
      lowest: the log-probability from which on the colour is full.
    """

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    tooltips: tuple[str, ...]
    lowest: float

    def __repr__(self) -> str:
        shown = ("" if math.isnan(one) else f" {one:z.2f}" for one in self.logprobs)
        return "\n".join(f"{text}{logprob}" for text, logprob in zip(self.texts, shown, strict=True))

    def _repr_html_(self) -> str:
        # Colours lie over the page's own background, and text has the page's colour: light and dark themes read alike.
        spans = [
            f'<span title="{html.escape(tip).replace("\n", "&#10;")}" style="background: {self._colour(one)}; '
            f'border-radius: 2px; display: inline-block; padding: 0 1px; margin-right: 2px">{html.escape(text)}</span>'
            + ("<br>" if text.endswith("↵") else "")
            for text, one, tip in zip(self.texts, self.logprobs, self.tooltips, strict=True)
        ]
        return f'<div style="font-family: monospace; line-height: 1.7; overflow-wrap: anywhere">{"".join(spans)}</div>'

    def _colour(self, logprob: float) -> str:
        if math.isnan(logprob):
            return "none"
        share = min(1.0, max(0.0, logprob / self.lowest))
        return f"rgba(235, 90, 20, {0.6 * share:.2f})" if share >= 0.05 else _SURE


def token_strip(
    tokens: Sequence[int],
    logprobs: Sequence[float],
    tokenizer: Tokenizer | None,
    *,
    top_logprobs: Sequence[Mapping[int, float]] | None = None,
    lowest: float = -3.0,
) -> TokenStrip:
    """Tokens coloured by their log-probability, with their ids, probabilities and alternatives behind them.

    Args:
      tokens: ids, of an answer or of a whole sequence.
      logprobs: natural logs, one for each token, or one less where the first token has none (`LLM.prompt_logprobs`).
      top_logprobs: for each of the logprobs the most probable ids and their log-probabilities, as a Completion has them.
      lowest: the log-probability from which on the colour is full.
    """
    tokens, logprobs = [int(token) for token in tokens], [float(one) for one in logprobs]
    without = len(tokens) - len(logprobs)
    if without not in (0, 1):
        raise ValueError(f"logprobs must be one for each of the {len(tokens)} tokens, or of those after the first; got {len(logprobs)}.")
    if top_logprobs is not None and len(top_logprobs) != len(logprobs):
        raise ValueError(f"top_logprobs must be one for each of the {len(logprobs)} logprobs, of the same call; got {len(top_logprobs)}.")
    if not lowest < 0:
        raise ValueError(f"lowest must be a log-probability below 0; got {lowest}.")
    logprobs = [math.nan] * without + logprobs
    tops = [{}] * without + list(top_logprobs or [{}] * (len(tokens) - without))
    texts = token_texts(tokens, tokenizer)
    tips = []
    for token, logprob, top in zip(tokens, logprobs, tops, strict=True):
        lines = [f"id {token}"] + ([] if math.isnan(logprob) else [_said(logprob)])
        names = token_texts(list(top), tokenizer)
        tips.append("\n".join(lines + [f"{name}  {_said(one)}" for name, one in zip(names, top.values(), strict=True)]))
    return TokenStrip(tuple(texts), tuple(tokens), tuple(logprobs), tuple(tips), lowest)


def _said(logprob: float) -> str:
    return f"{logprob:z.3f} ({math.exp(logprob):.1%})"


def _text(token: int, tokenizer: Tokenizer) -> str:
    name = tokenizer.control_name(token)
    if name is not None:
        return name
    text = tokenizer.decode_bytes([token]).decode("utf-8", errors="backslashreplace")
    return "".join(_VISIBLE.get(sign) or (sign if sign.isprintable() else sign.encode("unicode_escape").decode()) for sign in text)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _checked(name: str, values, ndim: int, shape: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != ndim:
        raise ValueError(f"{name} must be {shape}; got {values.shape}.")
    return values


def _expert_colours(count: int):
    """A colour for each expert: ones that are told apart as long as there are such."""
    from matplotlib.colors import ListedColormap

    get = canvas.pyplot().get_cmap
    return ListedColormap(get("tab10" if count <= 10 else "tab20").colors[:count]) if count <= 20 else get("turbo", count)


def _heat(ax: "Axes | None", values: np.ndarray, meaning: str, *, tall: float = 0.3, wide: float = 0.18, **options) -> "Axes":
    """An image of values [rows, columns] with its colour bar; `tall` and `wide` are inches of a cell where no `ax` is given."""
    rows, columns = values.shape
    if ax is None:
        ax = canvas.axes(min(16, 2.4 + wide * columns), min(12, 1.3 + tall * rows))
    image = ax.imshow(values, aspect="auto", interpolation="nearest", **({"vmin": 0, "cmap": "viridis"} | options))
    ax.figure.colorbar(image, ax=ax, label=meaning)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return ax


def _by_layer(ax: "Axes | None", shares: np.ndarray, meaning: str, columns: str) -> "Axes":
    """Shares from 0 to 1, layers by columns."""
    ax = _heat(ax, shares, meaning, vmax=1)
    _number(ax.yaxis, "layer", len(shares))
    _number(ax.xaxis, columns, shares.shape[1])
    return ax


def _number(axis: "Axis", what: str, count: int) -> None:
    if count <= 16:  # otherwise not every one
        axis.set_ticks(range(count))
    axis.set_label_text(what)


def _name_tokens(ax: "Axes", tokens: Sequence[int] | None, tokenizer: Tokenizer | None, count: int) -> None:
    """Names of the columns, which are tokens."""
    if tokens is None:
        ax.set_xlabel("position")
        return
    if len(tokens) != count:
        raise ValueError(f"tokens must be one for each of the {count} columns; got {len(tokens)}.")
    _label(ax.xaxis, token_texts(tokens, tokenizer), 7, rotation=90)


def _label(axis: "Axis", texts: Sequence[str], size: int, **options) -> None:
    axis.set_ticks(range(len(texts)), [_short(text, 16) for text in texts], fontsize=size, parse_math=False, **options)
