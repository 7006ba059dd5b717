"""The text of a continuation part by part, with the four lists of a completion's log-probabilities. Knows no jax."""

import codecs
from collections.abc import Mapping, Sequence

from gptoss_jax.openai.echoed import Echoed
from gptoss_jax.openai.writing.spelling import beside, finite
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.builder import SAID
from gptoss_jax.turns.completion import Completion, CompletionPiece
from gptoss_jax.turns.prompts import Prompt

LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
Part = tuple[str, dict | None]  # text, lists


def joined(parts: Sequence[Part], listed: bool) -> Part:
    """One part of several."""
    lists = {name: [one for _, lists in parts if lists for one in lists[name]] for name in LISTS}
    return "".join(text for text, _ in parts), lists if listed else None


class Parts:
    """One answer.

    Args:
        tokenizer: may be None where there is nothing to spell.
        listed: whether log-probabilities were asked for.
        prompt: text or ids of what comes back before the answer; None for nothing.
        echoed: the same as the model read it.

    A token's place in the text is where it begins; one that is behind the end of it, as what ended it is, has the end's.
    """

    def __init__(self, tokenizer: Tokenizer | None, listed: bool, prompt: Prompt | None = None, echoed: Echoed | None = None):
        self._tokenizer, self.listed = tokenizer, listed
        self._prompt, self._echoed = prompt, echoed
        self._came = [0, 0]  # of the answer: characters, tokens
        self._begins = self._reached = 0  # in the text: where the answer begins, how far tokens have come
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def echo(self) -> list[Part]:
        """The prompt, if it is to come back."""
        if self._prompt is None:
            return []
        before = self._echoed
        if before is not None:
            text = self._tokenizer.decode(before.tokens)
        else:
            text = self._prompt if isinstance(self._prompt, str) else self._tokenizer.decode(self._prompt)
        lists = None
        if self.listed and before is not None and before.logprobs is not None:
            lists = self._lists(before.tokens, before.logprobs, before.top_logprobs, len(text))
        self._begins = self._reached = len(text)
        self._decoder.reset()
        return [(text, lists)]

    def add(self, piece: CompletionPiece) -> list[Part]:
        """The next of the answer."""
        self._came[0] += len(piece.text)
        self._came[1] += len(piece.tokens)
        lists = None
        if self.listed and piece.tokens:
            others = beside(piece.top_logprobs, piece.given_logprobs)
            lists = self._lists(piece.tokens, piece.logprobs, others, self._begins + self._came[0])
        return [(piece.text, lists)] if piece.text or lists else []

    def rest(self, answer: Completion) -> list[Part]:
        """What the whole answer has beside the pieces that came."""
        characters, tokens = self._came
        cut = lambda values: None if values is None else values[tokens:]
        said = {name: cut(getattr(answer, name)) for name in SAID}
        return self.add(CompletionPiece(answer.text[characters:], answer.tokens[tokens:], **said))

    def _lists(
        self, tokens: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Mapping[int, float] | None] | None, end: int
    ) -> dict:
        out = {name: [] for name in LISTS}
        for i, (token, value) in enumerate(zip(tokens, logprobs, strict=True)):
            raw = self._tokenizer.decode_bytes([token])
            out["tokens"].append(_name(raw))
            out["token_logprobs"].append(None if value is None else finite(value))
            out["top_logprobs"].append(None if value is None else self._top(token, value, (tops[i] if tops else None) or {}))
            out["text_offset"].append(min(self._reached, end))
            self._reached += len(self._decoder.decode(raw))
        return out

    def _top(self, token: int, value: float, top: Mapping[int, float]) -> dict:
        """The one that came, and the most probable ones beside it. It has its name; another of the same text is named by its bytes."""
        named = {_name(self._tokenizer.decode_bytes([token])): finite(value)}
        for other, x in top.items():
            if other != token:
                raw = self._tokenizer.decode_bytes([other])
                name = _name(raw)
                named.setdefault(_bytes(raw) if name in named else name, finite(x))
        return named


def _name(raw: bytes) -> str:
    r"""A token as it stands in the text; part of a character as OpenAI spells it, `bytes:\xe2\x82`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _bytes(raw)


def _bytes(raw: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
