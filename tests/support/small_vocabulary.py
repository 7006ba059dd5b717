"""A SentencePiece vocabulary of 400 pieces, trained in a moment, for tests of the tokenizer and of harmony."""

import functools
from pathlib import Path
import tempfile

import sentencepiece

from gptoss_jax.tokenizer import CONTROL, SentencePiece


def train(path: Path, **changes) -> Path:
    """Writes the model to path and returns path; changes go to SentencePieceTrainer.train."""
    options = {
        "model_type": "char",
        "vocab_size": 400,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "control_symbols": list(CONTROL),
        "user_defined_symbols": ["analysis", "commentary", "final", "assistant", "\n"],
        "bos_id": -1,
        "eos_id": -1,
        "minloglevel": 2,
    }
    letters = "".join(chr(i) for i in range(32, 127))
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([letters] * 100), model_writer=file, **(options | changes))
    return path


@functools.cache
def small_vocabulary() -> SentencePiece:
    """The tokenizer of such a model."""
    with tempfile.TemporaryDirectory() as directory:
        return SentencePiece(train(Path(directory) / "tokenizer.model"))
