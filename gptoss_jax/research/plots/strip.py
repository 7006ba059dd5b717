"""Tokens in a row, coloured by how probable they were."""

from collections.abc import Mapping, Sequence
import dataclasses
import html
import math

from gptoss_jax.research.plots.texts import token_texts
from gptoss_jax.tokenizer import Tokenizer

_SURE = "rgba(128, 128, 128, 0.12)"


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
