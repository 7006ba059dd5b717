"""Reading of answers, well-formed or not: what could be read, what is marked, and that no token is lost."""

import numpy as np
import pytest

from gptoss_jax.harmony import StreamParser, parse, render
from gptoss_jax.tokenizer import STOP, harmony_encoding, o200k


def user(text="Hi"):
    return {"role": "user", "content": text}


# Reading. M, C, S, E, R stand for <|message|>, <|channel|>, <|start|>, <|end|>, <|return|>.

SHORT = {"M!": "<|message|>", "C!": "<|channel|>", "S!": "<|start|>", "E!": "<|end|>", "R!": "<|return|>", "K!": "<|constrain|>"}


def written(tokenizer, text):
    for short, name in SHORT.items():
        text = text.replace(short, name)
    return tokenizer.encode_with_control(text)


@pytest.mark.parametrize(
    ("stream", "messages", "junk", "problems"),
    [
        ("C!finalM!HiR!", [("final", "Hi")], [], []),
        ("C!analysisM!Hm.E!S!assistantC!finalM!HiR!", [("analysis", "Hm."), ("final", "Hi")], [], []),
        ("C!final K!jsonM!{}R!", [("final", "{}")], [], []),  # openai_harmony reads the type as a recipient
        ("C!finalHiR!", [("final", "Hi")], [], ["<|message|> is missing"]),
        ("C!final Hi thereR!", [("final", "Hi there")], [], ["<|message|> is missing"]),
        ("Just some  prose.R!", [(None, "Just some  prose.")], [], ["<|message|> is missing"]),
        ("C!finalM!HiE!R!", [("final", "Hi")], ["R!"], ["<|return|> after the end"]),
        ("S!assistantC!finalM!HiR!", [("final", "Hi")], [], ["<|start|> inside a header"]),
        ("C!analysisM!Hm.E!S!S!assistantC!finalM!HiR!", [("analysis", "Hm."), ("final", "Hi")], ["S!"], ["<|start|> inside a header"]),
        ("C!analysisM!Hm.E!uhS!assistantC!finalM!HiR!", [("analysis", "Hm."), ("final", "Hi")], ["uh"], ["text between messages"]),
        ("C!analysisM!Hm.E!C!finalM!HiR!", [("analysis", "Hm."), ("final", "Hi")], [], ["<|start|> is missing"]),
        ("C!analysisM!Hm.C!finalM!HiR!", [("analysis", "Hm."), ("final", "Hi")], [], ["<|channel|> inside a message"]),
        ("C!analysisM!Hm.S!assistantC!finalM!HiR!", [("analysis", "Hm."), ("final", "Hi")], [], ["<|start|> inside a message"]),
        ("C!finalM!HM!iR!", [("final", "Hi")], [], ["<|message|> inside a message"]),
        ("C!finalM!Hi<|endoftext|>", [("final", "Hi")], [], ["<|endoftext|> ends a message"]),
        ("analysisM!Hm.E!S!assistantC!finalM!HiR!", [("analysis", "Hm."), ("final", "Hi")], [], ["a header holds 'analysis'"]),
        ("C! finalM!HiR!", [("final", "Hi")], [], []),
        ("C!M!HiR!", [(None, "Hi")], [], ["<|channel|> without a name"]),
        ("C!analysisC!finalM!HiR!", [("final", "Hi")], [], ["two channels"]),
        ("C!final for you aloneM!HiR!", [("final", "Hi")], [], ["a header holds 'for you alone'"]),
        ("C!finalM!HiE!S!M!yoR!", [("final", "Hi"), (None, "yo")], [], ["<|start|> without a role"]),
        ("C!finalM!HiE!S!robotM!yoR!", [("final", "Hi"), (None, "yo")], [], ["no role is called 'robot'"]),
        ("C!finalM!HiE!S!assistantE!", [("final", "Hi")], ["S!assistantE!"], ["<|message|> is missing"]),
    ],
)
def test_what_can_be_read(tokenizer, stream, messages, junk, problems):
    tokens = written(tokenizer, stream)
    parsed = parse(tokenizer, tokens)
    assert [(m.channel, m.text) for m in parsed.messages] == messages
    assert [tokens[a:b] for a, b in parsed.junk] == [written(tokenizer, text) for text in junk]
    assert len(parsed.problems) == len(problems), parsed.problems
    assert all(expected in found for expected, found in zip(problems, parsed.problems, strict=True)), parsed.problems
    assert not parsed.incomplete


def test_calls(tokenizer):
    good = 'C!commentary to=functions.f K!jsonM!{"x": 1}<|call|>'
    for stream in (good, good.replace(" K!", "K!"), good.replace("K!", ""), ' to=functions.fC!commentary K!jsonM!{"x": 1}<|call|>'):
        parsed = parse(tokenizer, written(tokenizer, stream))
        (call,) = parsed.tool_calls
        assert (call.name, call.parsed, call.valid, parsed.messages[0].content_type) == ("f", {"x": 1}, True, "json"), stream
        assert not parsed.malformed and not parsed.incomplete and parsed.final == parsed.commentary == ""
    late = parse(tokenizer, written(tokenizer, good.replace("M!", "")))  # without <|message|>
    assert late.tool_calls[0].parsed == {"x": 1} and late.malformed
    for arguments in ('{"x": ', "[1]", "", "[" * 20_000, "1" * 5_000):
        call = parse(tokenizer, written(tokenizer, f"C!commentary to=functions.f K!jsonM!{arguments}<|call|>")).tool_calls[0]
        assert call.arguments == arguments and not call.valid and call.parsed is None
    two = parse(tokenizer, written(tokenizer, "C!commentary to=functions.f to=functions.g K!jsonM!{}<|call|>"))
    assert two.tool_calls[0].name == "f" and "two recipients" in two.problems[0]
    assert parse(tokenizer, written(tokenizer, "C!analysis to=browser.search codeM!x<|call|>")).tool_calls[0].name == "browser.search"


@pytest.mark.parametrize(
    ("stream", "missing"),
    [
        ("", "cut off in a message's header"),
        ("C!fin", "cut off in a message's header"),
        ("C!finalM!", "cut off in a message's content"),
        ("C!finalM!Hi", "cut off in a message's content"),
        ("C!analysisM!Hm.E!", "no answer and no call follow the analysis"),
        ("C!commentaryM!Wait.E!", "no answer and no call follow the commentary"),
        ("C!analysisM!Hm.E!S!assistant", "cut off in a message's header"),
        ("R!", "holds no message"),
        ("C!finalM!HiE!", ""),
        ("C!finalM!HiR!", ""),
    ],
)
def test_what_is_missing(tokenizer, stream, missing):
    parsed = parse(tokenizer, written(tokenizer, stream))
    assert missing in parsed.missing and parsed.incomplete == bool(missing)


@pytest.mark.parametrize(
    "header", ["C!comment", "C!commentary", "C!commentary to=functions.get_", "C!commentary to=functions.f K!js", "C!fin"]
)
def test_half_a_header_names_no_channel_and_calls_nothing(tokenizer, header):
    begun = written(tokenizer, "C!analysisM!Hm.E!S!assistant")
    cut = parse(tokenizer, begun + written(tokenizer, header))
    assert [message.text for message in cut.messages] == ["Hm."] and not cut.tool_calls and not cut.malformed
    assert cut.junk == ((len(begun) - len(written(tokenizer, "S!assistant")), len(cut.tokens)),)
    ended = parse(tokenizer, written(tokenizer, "C!commentary to=functions.f<|call|>"))
    assert ended.tool_calls[0].name == "f", "the model itself ended it"


def test_invalid_bytes_and_ids(tokenizer):
    head = written(tokenizer, "C!finalM!")
    smile = tokenizer.encode("\U00010348")
    end = [tokenizer.special["<|return|>"]]
    half = parse(tokenizer, head + smile[:-1] + end)
    assert half.final == "\ufffd" and half.malformed
    cut = parse(tokenizer, head + smile[:-1])
    assert cut.final == "\ufffd" and cut.incomplete and not cut.malformed
    for foreign in (-1, tokenizer.vocab_size, 2**80):
        parsed = parse(tokenizer, head + [foreign] + tokenizer.encode("Hi") + end)
        assert parsed.final == "\ufffdHi" and f"{foreign} is not in the vocabulary" in parsed.problems[0]
    assert "a whole number of some 5,001 digits is not in" in parse(tokenizer, [*head, 10**5000]).problems[0]
    literal = parse(tokenizer, head + tokenizer.encode("\ufffd") + end)
    assert literal.final == "\ufffd" and not literal.malformed


def test_a_character_is_held_back_until_it_is_whole(tokenizer):
    smile = tokenizer.encode("\U00010348")
    assert len(smile) > 1
    parser = StreamParser(tokenizer)
    *header, opening = written(tokenizer, "C!finalM!")
    assert not any(parser.push(token) for token in header)
    (first,) = parser.push(opening)
    assert (first.begins, first.text) == (True, "") and not any(parser.push(token) for token in smile[:-1])
    (delta,) = parser.push(smile[-1])
    assert (delta.channel, delta.text, delta.message) == ("final", "\U00010348", 0)
    parser.push(smile[0])
    assert [d.text for d in parser.finish()] == ["\ufffd"] and parser.finish() == []
    with pytest.raises(ValueError, match="finished"):
        parser.push(0)


CALL_F = 'S!assistantC!commentary to=functions.f K!jsonM!{"x": 1}<|call|>'


@pytest.mark.parametrize(
    ("stream", "dicts", "kept"),
    [
        ("S!assistantC!analysisM!aE!" + CALL_F, 1, ...),
        ("S!assistantC!analysisM!aE!S!assistantC!analysisM!bE!" + CALL_F, 2, ...),
        ("S!assistantC!analysisM!aE!S!assistantC!commentaryM!bE!" + CALL_F, 1, ...),
        ("S!assistantC!commentaryM!aE!S!assistantC!analysisM!bE!" + CALL_F, 2, ...),
        ("S!assistantC!commentaryM!aE!S!assistantC!commentaryM!bE!" + CALL_F, 2, ...),
        (CALL_F + CALL_F.replace(".f", ".g"), 1, ...),
        (CALL_F + "S!assistantC!finalM!aE!", 2, ...),
        ("S!assistantC!finalM!aE!" + CALL_F, 2, ...),
        ("S!assistantC!commentaryM!aE!S!assistantC!finalM!bE!", 2, ...),
        ("S!assistantC!analysisM!aE!S!assistantC!finalM!bE!", 1, "S!assistantC!finalM!bE!"),  # a finished turn drops its reasoning
    ],
)
def test_an_answer_goes_back_into_the_history(tokenizer, stream, dicts, kept):
    """Rendered again, the history ends with the very tokens that the model wrote."""
    answer = parse(tokenizer, written(tokenizer, stream), role=None).to_chat_messages()
    assert len(answer) == dicts
    kept = written(tokenizer, (stream if kept is ... else kept) + "S!assistant")
    assert render(tokenizer, [user(), *answer])[-len(kept) :] == kept


def test_the_stop_tokens_are_those_of_openai_harmony():
    assert {o200k().special[name] for name in STOP} == set(harmony_encoding().stop_tokens_for_assistant_actions())


@pytest.mark.parametrize(
    "tokens", [None, 5, "abc", [None], ["a"], [1.5], [[5]], [True], np.array([[5]]), np.array([1.0]), np.array(5), [np.array([5])], {"a"}]
)
def test_what_is_no_token_is_refused(tokenizer, tokens):
    for reads in (lambda: parse(tokenizer, tokens), lambda: tokenizer.decode(tokens)):
        with pytest.raises(ValueError, match="must be a flat sequence of integers; got|must be an integer; got"):
            reads()


def test_tokens_may_be_of_any_kind_of_integer(tokenizer):
    tokens = written(tokenizer, "C!finalM!HiR!")
    for kind in (np.array, tuple, iter, lambda ids: [np.int32(i) for i in ids], lambda ids: [np.array(i) for i in ids]):
        assert parse(tokenizer, kind(tokens)) == parse(tokenizer, tokens)
        assert tokenizer.decode(kind(tokens)) == tokenizer.decode(tokens)


@pytest.mark.parametrize("given", [{"role": "foo"}, {"role": 5}, {"role": ""}, {"channel": 5}, {"channel": "x"}, {"channel": []}])
def test_roles_and_channels_are_those_that_there_are(tokenizer, given):
    with pytest.raises(ValueError, match=f"^{next(iter(given))} must be None or one of "):
        parse(tokenizer, [], **given)
