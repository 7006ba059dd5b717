"""Pieces of turns and of continuations: whatever is written, however the engine cuts it, joined they are the whole, token by token."""

import itertools
import random

from as_written import TURNS, headers, random_streams, written
from byte_tokenizer import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.harmony import continued, parse
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.builder import SAID
from gptoss_jax.turns.completion import CompletionBuilder
from gptoss_jax.turns.reply import ReplyBuilder

BYTES = ByteTokenizer()
BEGUN = continued([{"role": "user", "content": "?"}, {"role": "assistant", "content": "It is"}])
STOPS = st.lists(st.sampled_from(["o", "f", "y", "fo", "ort", "one", "Hm", " d", "\n", "é", "\ufffd", "dE", "ya", "H\ufffd"]), max_size=3)


def cut(tokens, places):
    """The tokens in parts, some of them empty."""
    ends = sorted(place % (len(tokens) + 1) for place in places)
    return [tokens[begin:end] for begin, end in zip([0, *ends], [*ends, len(tokens)], strict=True)]


def fed(builder, request, parts, reason):
    """All pieces of a builder that is given tokens in these parts."""
    out, count = [], itertools.count(1)
    for i, part in enumerate(parts):
        numbers = [-float(next(count)) for _ in part]  # tell tokens apart
        last = reason if i == len(parts) - 1 else None
        top, given_ones, best = ([{token: x / by} for token, x in zip(part, numbers, strict=True)] for by in (1, 2, 4))
        beside = {"given_logprobs": given_ones, "processed_logprobs": [x / 3 for x in numbers], "top_processed_logprobs": best}
        out += builder.add(Piece(request, part, numbers, top, last, **beside))
        if request.cancelled:
            break
    return out


def of_turn(tokenizer, tokens, places, *, stop=(), begun=None, reason="stop", logprobs=1):
    beside = {"processed_logprobs": logprobs, "logprob_token_ids": [5] if logprobs else None}
    request = Request([1], Sampling(stop=stop, logprobs=logprobs, **beside))
    builder = ReplyBuilder(request, tokenizer, begun)
    return fed(builder, request, cut(tokens, places), reason), builder.result()


def check_turn(pieces, reply):
    """The pieces are in order, and joined they are what the reply says."""
    shown = [(i, message) for i, message in enumerate(reply.said) if message.role == "assistant"]
    assert [piece.message for piece in pieces if piece.begins] == [i for i, _ in shown]
    assert [piece.message for piece in pieces if piece.ends] == [i for i, _ in shown]
    groups = [(i, list(of_it)) for i, of_it in itertools.groupby(pieces, lambda piece: piece.message)]
    assert [i for i, _ in groups] == [i for i, _ in shown]
    for (_, of_it), (_, message) in zip(groups, shown, strict=True):
        assert of_it[0].begins and of_it[-1].ends
        assert all(piece.text or piece.begins or piece.ends or piece.tokens for piece in of_it)
        assert {(piece.channel, piece.call, piece.answers) for piece in of_it} == {
            (message.channel, message.tool_call and message.tool_call.name, message.answers)
        }
        assert "".join(piece.text for piece in of_it) == message.text
        content = slice(*message.content)
        for name in ("tokens", *SAID):
            whole = getattr(reply, name)
            joined = [getattr(piece, name) for piece in of_it]
            assert joined == [None] * len(joined) if whole is None else sum(joined, ()) == whole[content]
    assert "".join(piece.text for piece in pieces if piece.answers) == reply.text
    assert "".join(piece.text for piece in pieces if piece.channel == "analysis" and piece.call is None) == reply.reasoning
    calls = [i for i, message in shown if message.tool_call]
    arguments = ["".join(piece.text for piece in pieces if piece.message == i) for i in calls]
    assert arguments == [call.arguments for call in reply.tool_calls]


def check_said(reply):
    """What is said is what was parsed, up to the stop string."""
    messages = reply.parsed.messages
    assert reply.said[:-1] == messages[: len(reply.said) - 1] and len(reply.said) == len(messages)
    if reply.said != messages:
        told, whole = reply.said[-1], messages[-1]
        assert whole.answers and whole.text.startswith(told.text) and len(told.text) < len(whole.text)
        assert told.content[0] == whole.content[0] and whole.content[0] <= told.content[1] <= whole.content[1]
        assert (told.content[0] == told.content[1]) == (told.text == "")


@st.composite
def turns(draw):
    """A vocabulary and tokens of a turn: one that is near to well-formed, headers as models write them, or scraps."""
    tokenizer = draw(st.sampled_from([small_vocabulary(), BYTES]))
    pieces = st.one_of(headers(), st.sampled_from([*TURNS, "M!", "E!S!assistant", "A!", "R!", "é\U0001f600", "one", "Hm", "forty", "K!"]))
    tokens = written(tokenizer, "".join(draw(st.lists(pieces, max_size=6))))
    for at in draw(st.lists(st.integers(0, 1000), max_size=3)):  # halves of characters
        tokens.insert(at % (len(tokens) + 1), tokenizer.encode("\U00010348")[at % 2])
    return tokenizer, tokens


PLACES = st.lists(st.integers(0, 1000), max_size=12)
REASONS = st.sampled_from(["stop", "length", "cancelled"])


@settings(deadline=None, max_examples=200)
@given(turns(), PLACES, STOPS, st.sampled_from([None, BEGUN]), REASONS, st.sampled_from([None, 0, 1]))
def test_pieces_of_any_turn_add_up_to_its_reply(turn, places, stop, begun, reason, logprobs):
    tokenizer, tokens = turn
    pieces, reply = of_turn(tokenizer, tokens, places, stop=stop, begun=begun, reason=reason, logprobs=logprobs)
    check_turn(pieces, reply)
    check_said(reply)
    assert not any(one in message.text for one in stop for message in reply.said if message.answers)
    by_token, same = of_turn(tokenizer, tokens, range(len(tokens)), stop=stop, begun=begun, reason=reason, logprobs=logprobs)
    assert (same.said, same.text, same.messages, same.tokens) == (reply.said, reply.text, reply.messages, reply.tokens)
    check_turn(by_token, reply)
    assert reply.parsed == parse(tokenizer, reply.tokens, channel=begun and begun.channel)


@settings(deadline=None, max_examples=100)
@given(turns(), PLACES, STOPS, st.sampled_from(["stop", "length"]))
def test_pieces_of_any_continuation_add_up_to_it(turn, places, stop, reason):
    tokenizer, tokens = turn
    request = Request([1], Sampling(stop=stop, logprobs=1, processed_logprobs=1, logprob_token_ids=[5]))
    builder = CompletionBuilder(request, tokenizer)
    *parts, last = [part for part in cut(tokens, places) if part] or [[65]]  # a stop token comes with the reason
    pieces, done = fed(builder, request, [*parts, [], last], reason), builder.result()
    assert "".join(piece.text for piece in pieces) == done.text
    for name in ("tokens", *SAID):
        assert sum((getattr(piece, name) for piece in pieces), ()) == getattr(done, name)
    read = done.tokens[: -1 if reason == "stop" and not request.cancelled else None]
    whole = tokenizer.decode_bytes(read).decode(errors="replace")
    assert whole.startswith(done.text) and (done.text == whole) == (not request.cancelled)
    written, taken = "", []
    for piece in pieces[:-1]:  # the text of tokens that were told is out
        written, taken = written + piece.text, [*taken, *piece.tokens]
        assert written.startswith(tokenizer.decode_bytes(taken).decode(errors="replace"))


@pytest.mark.parametrize("tokenizer", [small_vocabulary(), BYTES], ids=["small", "bytes"])
def test_pieces_of_random_streams_add_up_to_replies(tokenizer):
    draw = random.Random(1)
    for tokens in itertools.islice(random_streams(tokenizer, 1), 300):
        places = [draw.randrange(1000) for _ in range(draw.randrange(8))]
        pieces, reply = of_turn(tokenizer, tokens, places, stop=draw.sample(["H", "for", "}", "i", "to"], draw.randrange(3)))
        check_turn(pieces, reply)
        check_said(reply)


def shown(turn, *, stop=(), places=None, tokenizer=BYTES):
    tokens = written(tokenizer, turn)
    pieces, reply = of_turn(tokenizer, tokens, range(len(tokens)) if places is None else places, stop=stop)
    check_turn(pieces, reply)
    return [(piece.message, piece.text, piece.begins, piece.ends, tokenizer.decode_bytes(piece.tokens)) for piece in pieces], reply


def test_a_message_begins_where_its_header_is_read_and_ends_where_it_ends():
    pieces, _ = shown("C!analysisM!HiE!S!assistantC!commentary to=functions.fM!A!")
    assert pieces == [
        (0, "", True, False, b""),
        (0, "H", False, False, b"H"),
        (0, "i", False, False, b"i"),
        (0, "", False, True, b""),
        (1, "", True, False, b""),  # a call without arguments
        (1, "", False, True, b""),
    ]
    pieces, reply = shown("C!commentary to=functions.fA!")  # as no header ends
    assert pieces == [(0, "", True, True, b"")] and reply.tool_calls[0].name == "f"


def test_one_piece_of_the_engine_s_is_one_piece_of_each_message():
    pieces, _ = shown("C!analysisM!HmE!S!assistantC!finalM!fortyR!", places=[])
    assert pieces == [(0, "Hm", True, True, b"Hm"), (1, "forty", True, True, b"forty")]


def test_tokens_wait_for_the_character_that_they_are_part_of():
    pieces, _ = shown("C!finalM!aéR!")
    assert pieces[1:] == [(0, "a", False, False, b"a"), (0, "é", False, False, "é".encode()), (0, "", False, True, b"")]
    tokens = [*written(BYTES, "C!finalM!a"), 0xC3, BYTES.special["<|return|>"]]  # whatever waits goes with the message's end
    pieces, reply = of_turn(BYTES, tokens, range(len(tokens)))
    check_turn(pieces, reply)
    assert (pieces[-1].text, pieces[-1].tokens, pieces[-1].ends) == ("\ufffd", (0xC3,), True)


def test_tokens_wait_for_text_that_a_stop_string_may_begin_with():
    pieces, _ = shown("C!finalM!aEnbEndR!", stop=("End",))
    assert pieces[1:] == [(0, "a", False, False, b"a"), (0, "Enb", False, False, b"Enb"), (0, "", False, True, b"")]
    pieces, _ = shown("C!finalM!aEnE!S!assistantC!finalM!dR!", stop=("End",))  # and it stands in one message
    assert [piece[:2] for piece in pieces] == [(0, ""), (0, "a"), (0, "En"), (1, ""), (1, "d"), (1, "")]


def test_a_token_that_a_stop_string_cuts_is_said_with_what_is_left_of_it():
    w1 = next(i for i in range(BYTES.vocab_size) if BYTES.token_bytes(i) == b" w1")
    tokens = [*written(BYTES, "C!finalM!a"), w1, 98]
    for stop, texts, told in (("1", ["", "a", " w"], [97, w1]), (" w1", ["", "a", ""], [97]), ("a w", ["", "", ""], [])):
        pieces, reply = of_turn(BYTES, tokens, range(len(tokens)), stop=(stop,))
        check_turn(pieces, reply)
        texts = [text for i, text in enumerate(texts) if i != 1 or text]
        assert [piece.text for piece in pieces] == texts and pieces[-1].ends
        assert reply.text == reply.said[0].text == "".join(texts) and reply.parsed.messages[0].text == "a w1"
        assert list(reply.tokens[slice(*reply.said[0].content)]) == told


def test_messages_of_others_have_no_pieces_and_keep_their_number():
    pieces, reply = shown("C!analysisM!HmE!S!userM!HiE!S!assistantC!finalM!fR!", places=[])
    assert [piece[0] for piece in pieces] == [0, 2] and [message.role for message in reply.said] == ["assistant", "user", "assistant"]


def test_a_continuation_without_a_tokenizer_has_tokens_and_no_text():
    request = Request([1], Sampling())
    builder = CompletionBuilder(request, None)
    pieces = fed(builder, request, [[5, 6], [], [7]], "length")
    assert [(piece.text, piece.tokens, piece.logprobs) for piece in pieces] == [("", (5, 6), None), ("", (7,), None)]
    assert builder.result().tokens == (5, 6, 7)


def test_what_has_come_so_far_can_be_asked_at_any_time_and_changes_nothing():
    tokens = written(BYTES, "aé")
    request = Request([1], Sampling(stop=["é!"]))
    builder, texts = CompletionBuilder(request, BYTES), []
    for token in tokens:
        builder.add(Piece(request, [token], [-1.0], [{}], None))
        texts.append((builder.result().text, builder.result().finish_reason))
    assert texts == [("a", "cancelled"), ("a\ufffd", "cancelled"), ("aé", "cancelled")]
