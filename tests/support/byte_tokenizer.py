"""A vocabulary of 320 ids for tests: 256 bytes, words of several characters, and harmony's control tokens at the end."""

from gptoss_jax.tokenizer import CONTROL, Tokenizer

WORDS = [f" w{i}" for i in range(320 - 256 - len(CONTROL))]


class ByteTokenizer(Tokenizer):
    vocab_size = 320

    def __init__(self):
        self.special = {name: 319 - i for i, name in enumerate(CONTROL)}  # <|return|> is 319, tiny's end of an answer
        self._names = {i: name for name, i in self.special.items()}

    def token_bytes(self, token: int) -> bytes | None:
        if 0 <= token < 256:
            return bytes([token])
        return WORDS[token - 256].encode() if 256 <= token < 256 + len(WORDS) else None

    def control_name(self, token: int) -> str | None:
        return self._names.get(token)

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())
