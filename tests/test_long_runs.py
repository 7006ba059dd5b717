"""Texts of a megabyte that are one long run of something: encoded as ever, in time that grows with their length, and without a panic."""

import random
import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from gptoss_jax import tokenizer as tokenizers
from gptoss_jax.harmony import render
from gptoss_jax.harmony.marks import LONGEST
from gptoss_jax.tokenizer import o200k

SIZE = 1_000_000  # bytes
SECONDS = 30  # a second or less on a free machine; what goes quadratic takes minutes


def chosen(letters: str):
    """A text of a megabyte whose letters are drawn from these."""
    return lambda: "".join(random.Random(0).choices(letters, k=SIZE // len(letters[0].encode("utf-8", "surrogatepass"))))


KINDS = {
    "one letter": chosen("x"),
    "letters": chosen("abcdefghijklmnopqrstuvwxyz"),
    "ACGT": chosen("ACGT"),
    "alternating case": lambda: "aB" * (SIZE // 2),
    "CJK": chosen("".join(map(chr, range(0x4E00, 0x9FA5)))),
    "combining marks": chosen("\u0301"),
    "accents": lambda: "e\u0301" * (SIZE // 3),
    "digits": chosen("0123456789"),
    "signs": chosen("!@#$%^&*()-=[]{};:,.<>/?"),
    "equals": chosen("="),
    "apostrophes": lambda: "'s" * (SIZE // 2),
    "blanks": chosen(" "),
    "blanks and a word": lambda: " " * SIZE + "x",
    "tabs": chosen("\t"),
    "wide blanks": chosen("\u3000"),
    "line ends": chosen("\n"),
    "lines of blanks": lambda: (" " * 7 + "\n") * (SIZE // 8),
    "blanks of all kinds": chosen(" \t\n\r\x0b\x85\u3000"),
    "joined emoji": lambda: "\N{MAN}\u200d" * (SIZE // 7),
    "words": lambda: "a b " * (SIZE // 4),
    "Unicode": lambda: "".join(map(chr, random.Random(0).choices([*range(0xD800), *range(0xE000, 0x110000)], k=SIZE // 4))),
    "lone surrogates": chosen("\ud83d"),
    "zeros": chosen("\0"),
    "SentencePiece's blank": chosen("\u2581"),
    "SentencePiece's blank and a letter": lambda: "\u2581a" * (SIZE // 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.quick("o200k-blanks and a word", "small-SentencePiece's blank")
def test_a_megabyte_of_one_kind(tokenizer, kind, capfd):
    text = KINDS[kind]()
    began = time.monotonic()
    ids = render(tokenizer, [{"role": "user", "content": text}])
    assert time.monotonic() - began < SECONDS
    begin = [at for at, token in enumerate(ids) if token == tokenizer.special["<|message|>"]][-1] + 1
    assert tokenizer.decode(ids[begin : ids.index(tokenizer.special["<|end|>"], begin)]) == tokenizers.clean(text)
    assert capfd.readouterr() == ("", "")


PARTS = [*" \t\n\r\u3000\x0b\x85aA7=/'", "  ", "'s", "\u0301", "\x1c", "\u200b", "\u180e", "日", "\ud83d"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join), st.integers(2, 4))
def test_runs_of_blanks_are_split_as_tiktoken_splits_them(text, shortest):
    kept, tokenizers._BLANKS = tokenizers._BLANKS, re.compile(tokenizers._BLANKS.pattern.replace("{100000,}", f"{{{shortest},}}"))
    try:
        assert o200k().encode(text) == o200k().encoding.encode_ordinary(text)
    finally:
        tokenizers._BLANKS = kept


@pytest.mark.parametrize("around", [("", ""), ("a", "b"), ("\n", "="), ("=\n", "\n"), (" \n", "\u0301")])
def test_a_run_that_tiktoken_can_split_too(around):
    text = (" " * 110_000).join(around) + "\t" * 100_000 + "x" + " " * 99_999
    assert o200k().encode(text) == o200k().encoding.encode_ordinary(text)


def test_every_long_text_of_a_conversation(tokenizer):
    run = "ACGT" * (LONGEST // 2)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": run}}}
    messages = [
        {"role": "system", "content": run},
        {"role": "user", "content": [{"type": "text", "text": run}, {"type": "text", "text": run}]},
        {"role": "assistant", "reasoning": run, "content": run, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": run},
        {"role": "developer", "content": run},
    ]
    ids = render(tokenizer, messages, instructions=run, model_identity=run, knowledge_cutoff=run)
    text = tokenizer.decode(ids)
    assert text.count(run) == 11 and ids == tokenizer.encode_with_control(text)
