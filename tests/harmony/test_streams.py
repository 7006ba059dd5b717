"""A million random streams of each vocabulary through the parser, token by token and at once: no exception, and no token lost."""

import itertools

from as_written import add_up, random_streams
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.harmony import StreamParser, parse
from gptoss_jax.tokenizer import o200k

VOCABULARIES = {"o200k": o200k, "small": small_vocabulary}
PART = 100_000  # streams of one case


def check(tokenizer, tokens: list[int], role: str | None) -> None:
    """Raises an AssertionError if the parser loses or invents something."""
    parser = StreamParser(tokenizer, role=role)
    deltas = [delta for token in tokens for delta in parser.push(token)] + parser.finish()
    parsed = parser.result()
    assert parsed == parse(tokenizer, tokens, role=role)
    at = 0
    for begin, end in parsed.spans:
        assert begin == at < end
        at = end
    assert at == len(tokens) and parsed.tokens == tuple(tokens)
    add_up(deltas, parsed)
    assert parsed.malformed or not parsed.junk or parsed.incomplete
    assert parsed.final == "".join(delta.text for delta in deltas if delta.answers)
    for call in parsed.tool_calls:
        assert call.name and (call.parsed is None) != call.valid
    for message in parsed.to_chat_messages():
        assert message["role"] == "assistant" and len(message) > 1


def check_many(vocabulary: str, seed: int, count: int) -> None:
    tokenizer = VOCABULARIES[vocabulary]()
    for number, tokens in enumerate(itertools.islice(random_streams(tokenizer, seed), count)):
        try:
            check(tokenizer, tokens, "assistant" if number % 2 else None)
        except Exception as error:
            raise AssertionError(f"stream {number} of seed {seed}, {tokens}, {tokenizer.decode(tokens)!r}") from error


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_random_streams_are_read_and_no_token_is_lost(vocabulary):
    check_many(vocabulary, 0, 1_000)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 11))
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_million_random_streams_are_read_and_no_token_is_lost(vocabulary, part):
    check_many(vocabulary, part, PART)
