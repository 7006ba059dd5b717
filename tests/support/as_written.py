"""Turns as models write them, in short (M! is <|message|>, C! <|channel|>, ...), and random ones, some near to well-formed."""

from collections.abc import Iterator, Sequence
import itertools
import random

from hypothesis import strategies as st

from gptoss_jax.harmony import Delta, Parsed, StreamParser, parse
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
    add_up(deltas, parsed)
    return parsed


def add_up(deltas: Sequence[Delta], parsed: Parsed) -> None:
    """Asserts that deltas are those of the messages: in order, each with a beginning and an end, the text and the tokens of the content."""
    assert [delta.message for delta in deltas if delta.begins] == list(range(len(parsed.messages)))
    assert [delta.message for delta in deltas if delta.ends] == list(range(len(parsed.messages)))
    for index, (of_it, message) in enumerate(itertools.zip_longest(_by_message(deltas), parsed.messages)):
        assert of_it[0].begins and of_it[-1].ends and {delta.message for delta in of_it} == {index}
        header = {(delta.role, delta.channel, delta.recipient, delta.answers) for delta in of_it}
        assert header == {(message.role, message.channel, message.recipient, message.answers)}
        assert "".join(delta.text for delta in of_it) == message.text
        assert all(delta.text or delta.begins or delta.ends for delta in of_it)
        spans = [delta.content for delta in of_it]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
        assert (spans[0][0], spans[-1][1]) == message.content
        assert message.span[0] <= message.content[0] <= message.content[1] == message.span[1] - (message.end is not None)


def _by_message(deltas: Sequence[Delta]) -> list[list[Delta]]:
    return [list(of_it) for _, of_it in itertools.groupby(deltas, lambda delta: delta.message)]
