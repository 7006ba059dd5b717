"""A tokenizer of ours as llguidance wants one: the bytes of every id that is text, and nothing for the others."""

import functools

from llguidance import LLTokenizer, TokenizerWrapper
import numpy as np

from gptoss_jax.grammar.numbers import Dangerous
from gptoss_jax.tokenizer import Tokenizer


class Vocabulary:
    """The ids of one tokenizer for grammars. Get one from `vocabulary`.

    Attributes:
        words: of a mask over the tokenizer's ids, 32 ids each.
        text: such a mask, of the ids that stand for at least one byte. Control tokens and unused ids do not.
        dangerous: tokens that can make a number of JSON too large.
        library: llguidance's own object.
    """

    def __init__(self, tokenizer: Tokenizer):
        source = _Source(tokenizer)
        self.words = -(-tokenizer.vocab_size // 32)
        self.text = bits(np.array([bool(data) for data in source.tokens]))
        self._bytes = source.tokens
        self.dangerous = Dangerous(source.tokens)
        self.library = LLTokenizer(TokenizerWrapper(source))

    def __contains__(self, token: int) -> bool:
        """Whether the id stands for at least one byte."""
        return 0 <= token < 32 * self.words and bool(self.text[token // 32] >> (token % 32) & 1)

    def bytes_of(self, token: int) -> bytes:
        """What an id of it stands for."""
        return self._bytes[token]


class _Source:
    """What llguidance reads. It asks for the tokens of text that a grammar forces, and takes ours instead of the longest match."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        self.eos_token_id = tokenizer.special["<|endoftext|>"]  # it must have one; it has no bytes and is never allowed
        self.special_token_ids: list[int] = []
        self.tokens = [tokenizer.token_bytes(i) or b"" for i in range(tokenizer.vocab_size)]
        self._encode = tokenizer.encode

    def __call__(self, data: bytes) -> list[int]:
        return self._encode(data.decode())


@functools.lru_cache(maxsize=8)
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The ids of tokenizer for grammars, built once: about a second for the 201,088 of o200k, and 80 MB."""
    return Vocabulary(tokenizer)


def bits(flags: np.ndarray) -> np.ndarray:
    """A mask of booleans, one for each id: bit i % 32 of word i // 32; the last word is filled up with 0."""
    padded = np.pad(flags, (0, -len(flags) % 32))
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)
