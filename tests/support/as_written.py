"""Turns as models write them, in short (M! is <|message|>, C! <|channel|>, ...), and random ones, some near to well-formed."""

from collections.abc import Iterator
import random

from hypothesis import strategies as st

from gptoss_jax.harmony import Parsed, StreamParser, parse
from gptoss_jax.tokenizer import CONTROL, Tokenizer

SHORT = {"M!": "<|message|>", "C!": "<|channel|>", "S!": "<|start|>", "E!": "<|end|>", "R!": "<|return|>", "A!": "<|call|>"}
SHORT |= {"K!": "<|constrain|>"}
SCRAPS = ["assistant", "Assistant", "user", "analysis", "commentary", "final", "FINAL", "json", "code", "to=", "to =", "functions."]
SCRAPS += ["functions", "f", "g", "to=functions.f", "to=f", "to=user", ' to="functions.f"', "python", "browser.search", '"', "`", "?", ","]
SCRAPS += [".", "–", "{", "Hi", " ", " ", " ", "\n", "=", "<|channel|>", ":", "é", "ſ"]
TURNS = [
    "C!analysisM!Hm.E!S!assistantC!finalM!fortyR!",
    'C!analysisM!Hm.E!S!assistantC!commentary to=functions.f K!jsonM!{"x": 1}A!',
    'C!commentaryM!See.E!S!assistant to=functions.fC!commentary jsonM!{"x": 1}A!',
    "S!functions.f to=assistantC!commentaryM!okE!S!assistantC!finalM!\U0001f600 doneR!",
    "S!userM!Hi é–E!S!assistantC!final K!jsonM!{}R!",
]


def written(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a turn in short."""
    for short, name in SHORT.items():
        text = text.replace(short, name)
    return tokenizer.encode_with_control(text)


def headers() -> st.SearchStrategy[str]:
    """Headers of some words in any order, in short, without the <|message|>."""
    words = st.lists(st.sampled_from(SCRAPS), max_size=5).map("".join)
    pieces = st.tuples(st.sampled_from(["C!", "K!", "C!", ""]), words).map("".join)
    return st.lists(pieces, max_size=4).map("".join)


def random_streams(tokenizer: Tokenizer, seed: int) -> Iterator[list[int]]:
    """Streams of ids without end: well-formed turns with slips in them, control tokens, words of headers, halves of characters, any ids
    in and outside of the vocabulary.
    """
    draw = random.Random(seed)
    turns = [written(tokenizer, turn) for turn in TURNS]
    scraps = [tokenizer.encode(word) for word in SCRAPS]
    control = [tokenizer.special[name] for name in CONTROL]
    reserved = [i for i in range(tokenizer.vocab_size - 1_200, tokenizer.vocab_size) if i >= 0 and tokenizer.control_name(i)]
    halves = [tokenizer.encode(one)[:1] for one in ("\U00010348", "é", "€", "\u0e01\u0e33", "\U0001f469\u200d\U0001f680")]
    odd = (-1, -(2**70), tokenizer.vocab_size, tokenizer.vocab_size + 500, 2**31, 2**64)

    def piece() -> list[int]:
        kind = draw.random()
        if kind < 0.35:
            return [draw.choice(control)]
        if kind < 0.75:
            return draw.choice(scraps)
        if kind < 0.9:
            return [draw.randrange(tokenizer.vocab_size)]
        return draw.choice([draw.choice(halves), [draw.choice(odd)], [draw.choice(reserved or control)]])

    while True:
        tokens = list(draw.choice(turns)) if draw.random() < 0.6 else []
        for _ in range(draw.randrange(4) if tokens else draw.randrange(25)):
            at, what = draw.randint(0, len(tokens)), draw.random()
            if what < 0.6 or not tokens:
                tokens[at:at] = piece()
            elif what < 0.75:
                del tokens[at : at + draw.randint(1, 3)]
            elif what < 0.9:
                tokens[at:at] = tokens[at : at + draw.randint(1, 6)]
            else:
                del tokens[at:]
        yield tokens


def read(tokenizer: Tokenizer, text: str) -> Parsed:
    """What is read at once, after it was found to agree with what is read token by token."""
    tokens = written(tokenizer, text)
    parser = StreamParser(tokenizer)
    deltas = [delta for token in tokens for delta in parser.push(token)] + parser.finish()
    parsed = parse(tokenizer, tokens)
    assert parser.result() == parsed
    assert [i for a, b in parsed.spans for i in tokens[a:b]] == tokens
    for delta in deltas:
        message = parsed.messages[delta.message]
        assert (delta.role, delta.channel, delta.recipient) == (message.role, message.channel, message.recipient)
        assert delta.answers == message.answers
    return parsed
