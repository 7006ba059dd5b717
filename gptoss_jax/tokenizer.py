"""Text to token ids and back: o200k_harmony for gpt-oss, SentencePiece for small checkpoints with a vocabulary of their own.

The first and the last station. It knows neither messages nor arrays. Text never becomes a control token here: a prompt that
contains "<|start|>" encodes to ordinary ids that spell it, so that nobody can forge a message header from inside a message.
"""

from collections.abc import Iterable, Iterator
import functools
import operator
import os
from pathlib import Path
import re
from typing import TYPE_CHECKING

from gptoss_jax.quoting import quoted

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding
    from tiktoken import Encoding

# The control tokens of the harmony format, by the names that both vocabularies use.
CONTROL = ("<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>", "<|endoftext|>")
STOP = ("<|return|>", "<|call|>")  # what ends an assistant turn

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_CONTROL_NAMES = re.compile("(" + "|".join(map(re.escape, CONTROL)) + ")")

_LARGEST = 64 << 20  # bytes of a tokenizer.model; 256,000 pieces take 4 MB
_O200K_RANKS = 199_998  # ids from here on are control tokens
_O200K_SIZE = 201_088
_O200K_PATTERN = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
))  # fmt: skip

# tiktoken's regex panics on a million blanks in a row with no line end after them: such a run is split here as the pattern splits it.
_BLANK = "[\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_LONG_RUN = 100_000
_BLANKS = re.compile(rf"(?<!{_BLANK}){_BLANK}{{{_LONG_RUN},}}+(?![\r\n])")


class Tokenizer:
    """Text to ids and back, in one vocabulary. Get one from `load`, `o200k()` or `SentencePiece(path)`.

    Attributes:
        vocab_size: ids run from 0 to vocab_size - 1.
        special: the id of each name in `CONTROL`.
    """

    vocab_size: int
    special: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """The ids of plain text. Never a control token, whatever the text looks like; "" is no ids.

        A lone surrogate, which no UTF-8 can hold, becomes U+FFFD.

        Raises:
            ValueError: text is not a string.
        """
        return self._encode(clean(text))

    def encode_with_control(self, text: str) -> list[int]:
        """The ids of text that the program wrote itself: here the names in `CONTROL` are control tokens."""
        parts = _CONTROL_NAMES.split(clean(text))
        return [i for part in parts for i in ([self.special[part]] if part in self.special else self.encode(part))]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Invalid UTF-8 and ids outside the vocabulary read U+FFFD; control tokens are spelled out.

        Raises:
            ValueError: ids are not integers.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, exact for ids of text; see `decode` for the others."""
        return b"".join(map(self._spell, token_ids(ids)))

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes that one id of text stands for; None for a control token and for an id outside the vocabulary."""
        raise NotImplementedError

    def control_name(self, token: int) -> str | None:
        """The name of a control token such as "<|end|>", reserved ones included; None for every other id."""
        raise NotImplementedError

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _spell(self, token: int) -> bytes:
        data = self.token_bytes(token)
        if data is not None:
            return data
        name = self.control_name(token)
        return name.encode() if name else _REPLACEMENT


class O200k(Tokenizer):
    """o200k_harmony, the vocabulary of gpt-oss, over a `tiktoken.Encoding`."""

    vocab_size = _O200K_SIZE

    def __init__(self) -> None:
        self.encoding = o200k_harmony()
        self.special = {name: self.encoding.encode_single_token(name) for name in CONTROL}

    def token_bytes(self, token: int) -> bytes | None:
        return self.encoding.decode_single_token_bytes(token) if 0 <= token < _O200K_RANKS else None

    def control_name(self, token: int) -> str | None:
        return self.encoding.decode_single_token_bytes(token).decode() if _O200K_RANKS <= token < _O200K_SIZE else None

    def _encode(self, text: str) -> list[int]:
        ids, begin = [], 0
        for run in _BLANKS.finditer(text):
            end = run.end() - (run.end() < len(text))  # the last blank goes with the word after it
            ids += self.encoding.encode_ordinary(text[begin : run.start()])
            ids += self.encoding._encode_single_piece(text[run.start() : end])
            begin = end
        return ids + self.encoding.encode_ordinary(text[begin:])


class SentencePiece(Tokenizer):
    """The vocabulary in a SentencePiece `tokenizer.model`, which must be able to spell any text and hand it back unchanged.

    Args:
        path: the file. Harmony's control tokens must be *control symbols* of it, which text can never encode to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a SentencePiece model, lacks a control symbol, or changes text.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no SentencePiece model at {path}; pass the path of a tokenizer.model")
        if (size := Path(path).stat().st_size) > _LARGEST:
            raise ValueError(f"{path} must have at most {_LARGEST:,} bytes; it has {size:,}; copy it again or train it anew")
        try:
            with open(path, "rb") as file:
                pointer = file.read(100).startswith(b"version https://git-lfs")
        except OSError as error:
            raise ValueError(f"{path} must be a file that can be read; got: {error.strerror}; put the file there") from None
        if pointer:
            raise ValueError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` there, or download it again.")
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is not a SentencePiece model ({reason}); copy it again or train it anew") from error
        self.vocab_size = self._model.get_piece_size()
        self.special = {name: self._model.piece_to_id(name) for name in CONTROL}
        if missing := [name for name, i in self.special.items() if not self._model.is_control(i)]:
            raise ValueError(f"{path} lacks the control symbols {', '.join(missing)}; train it with them in control_symbols")
        try:
            self._bytes = [self._piece_bytes(i) for i in range(self.vocab_size)]
        except ValueError as error:  # a piece that is no UTF-8, or a byte that is none
            raise ValueError(f"{path} is not a SentencePiece model ({error}); copy it again or train it anew") from error
        # A blank is U+2581 inside a piece. A U+2581 of the text itself is spelled by its bytes, or it would come back as a blank.
        self._blank_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in "\u2581".encode()]
        probe = "  a b\n\n\t\u2581\N{GRINNING FACE}\ufb01 <|start|>\x00 "
        if self.decode(self.encode(probe)) != probe:
            raise ValueError(
                f"{path} changes text when it encodes it; train it with byte_fallback=True, "
                "normalization_rule_name='identity', add_dummy_prefix=False and remove_extra_whitespaces=False"
            )

    def serialized(self) -> bytes:
        """What a tokenizer.model of this vocabulary holds."""
        return self._model.serialized_model_proto()

    def token_bytes(self, token: int) -> bytes | None:
        return self._bytes[token] if 0 <= token < self.vocab_size else None

    def control_name(self, token: int) -> str | None:
        inside = 0 <= token < self.vocab_size
        return self._model.id_to_piece(token) if inside and self._model.is_control(token) else None

    def _piece_bytes(self, token: int) -> bytes | None:
        piece = self._model.id_to_piece(token)
        if self._model.is_control(token):
            return None
        if self._model.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # "<0x0A>"
        return _REPLACEMENT if self._model.is_unknown(token) else piece.replace("\u2581", " ").encode()

    def _encode(self, text: str) -> list[int]:
        head, *rest = text.split("\u2581")
        ids = self._model.encode(head)
        for part in rest:
            ids += self._blank_ids
            ids += self._model.encode(part) if part else []
        return ids


@functools.cache
def o200k() -> O200k:
    """The tokenizer of gpt-oss, built once in a process (about half a second) and without a network."""
    return O200k()


@functools.cache
def o200k_harmony() -> "Encoding":
    """gpt-oss' vocabulary as a tiktoken Encoding: 199,998 merge ranks and the control tokens up to 201,087.

    tiktoken would download the ranks; `openai_harmony` embeds them, and shows them one decoded id at a time.
    """
    import tiktoken

    decode = harmony_encoding().decode
    spelled = {decode([i], errors="surrogateescape").encode(errors="surrogateescape"): i for i in range(_O200K_SIZE)}
    return tiktoken.Encoding(
        "o200k_harmony",
        pat_str=_O200K_PATTERN,
        mergeable_ranks={data: i for data, i in spelled.items() if i < _O200K_RANKS},
        special_tokens={data.decode(): i for data, i in spelled.items() if i >= _O200K_RANKS},
        explicit_n_vocab=_O200K_SIZE,
    )


@functools.cache
def harmony_encoding() -> "HarmonyEncoding":
    """openai_harmony's own encoding, which renders conversations and embeds the vocabulary; loaded once (in 0.2 s)."""
    import openai_harmony

    return openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def load(directory: str | os.PathLike, config=None) -> Tokenizer:
    """The tokenizer of a checkpoint directory: its `tokenizer.model` if it holds one, else o200k_harmony.

    Args:
        directory: the checkpoint. `tokenizer.json` is not read: gpt-oss' own is o200k_harmony.
        config: anything with a `vocab_size`; if given, every id must have a row in the model's embedding.

    Raises:
        FileNotFoundError: directory is not a directory.
        ValueError: its `tokenizer.model` is unusable, or the vocabulary is larger than the model's.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no checkpoint directory at {directory}; pass the directory that holds config.json")
    path = directory / "tokenizer.model"
    tokenizer = SentencePiece(path) if os.path.lexists(path) else o200k()
    if config is not None and tokenizer.vocab_size > config.vocab_size:
        name = "tokenizer.model" if os.path.lexists(path) else "o200k_harmony (there is no tokenizer.model)"
        raise ValueError(
            f"the model in {directory} has {config.vocab_size:,} token ids but {name} has {tokenizer.vocab_size:,}; "
            "put the tokenizer.model that the model was trained with beside its config.json"
        )
    return tokenizer


def token_ids(ids: Iterable[int]) -> Iterator[int]:
    """Ids of whatever kind of integer, in a list, an array of one dimension or as they come, as Python's.

    Raises:
        ValueError: at the first that is none.
    """
    if not hasattr(ids, "__iter__") or isinstance(ids, str) or getattr(ids, "ndim", 1) != 1:
        raise ValueError(f"token ids must be a flat sequence of integers; got {quoted(ids, 60)}; pass a list of them")
    return map(token_id, ids)


def token_id(value: int) -> int:
    """One id as Python's integer; raises a ValueError if it is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except Exception as error:
        raise ValueError(f"a token id must be an integer; got {quoted(value, 60)}; pass ids as an encoder gives them") from error


def clean(text: str) -> str:
    """text with every surrogate pair joined and every lone surrogate replaced by U+FFFD, as tiktoken does."""
    if not isinstance(text, str):
        raise ValueError(f"text must be a string; got {type(text).__name__}; decode or join it first")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
