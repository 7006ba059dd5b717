"""Visible texts of tokens, for labels and strips."""

from collections.abc import Sequence

from gptoss_jax.tokenizer import Tokenizer

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣"}


def token_texts(tokens: Sequence[int], tokenizer: Tokenizer | None) -> list[str]:
    """A visible text of each token by itself; without a tokenizer its id.

    Blanks and line ends become signs, and bytes that are no UTF-8 by themselves such as "\\xe2".
    """
    return [str(int(token)) if tokenizer is None else _text(int(token), tokenizer) for token in tokens]


def short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(token: int, tokenizer: Tokenizer) -> str:
    name = tokenizer.control_name(token)
    if name is not None:
        return name
    text = tokenizer.decode_bytes([token]).decode("utf-8", errors="backslashreplace")
    return "".join(_VISIBLE.get(sign) or (sign if sign.isprintable() else sign.encode("unicode_escape").decode()) for sign in text)
