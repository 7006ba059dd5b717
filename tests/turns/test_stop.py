"""TextStop: whole characters out of bytes, and the end at a stop string, however the bytes are cut."""

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from gptoss_jax.turns.stop import TextStop

LETTERS = st.text("ab\n\N{SNOWMAN}\N{GRINNING FACE}", max_size=24)
STOPS = st.lists(st.text("ab\n\N{SNOWMAN}", min_size=1, max_size=4), max_size=3)


def cut(data, places):
    ends = [*sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def until_stop(text, stops):
    """Letter by letter: the first stop that is complete ends the text where it begins."""
    for end in range(1, len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)]
    return text


def test_what_may_be_the_beginning_of_a_stop_is_held_back():
    stop = TextStop(["\n\n"])
    assert stop.push(b"one\n") == "one"
    assert stop.push(b"two\n") == "\ntwo"
    assert not stop.found
    assert stop.push(b"\nthree") == ""
    assert stop.found
    assert stop.push(b"four") == ""
    assert stop.finish() == "one\ntwo"


def test_a_character_comes_when_its_bytes_are_complete():
    stop = TextStop([])
    assert [stop.push(bytes([byte])) for byte in "\N{SNOWMAN}".encode()] == ["", "", "\N{SNOWMAN}"]


@pytest.mark.parametrize("data", [b"a\xff", b"a\xe2\x98"])
def test_invalid_and_unfinished_bytes_read_as_replacement_characters(data):
    stop = TextStop(["never"])
    stop.push(data)
    assert stop.finish() == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("stops, kept", [(["world", "o w"], "hell"), (["lo world", "w"], "hello "), (["o", "llo"], "he")])
def test_the_first_stop_that_is_complete_ends_the_text(stops, kept):
    for parts in (["hello world"], "hello world"):
        stop = TextStop(stops)
        for part in parts:
            stop.push(part)
        assert stop.finish() == kept


@pytest.mark.parametrize("text, kept", [("aab", ""), ("aaab", "a"), ("aaaab", "aa")])
def test_a_stop_that_overlaps_itself_is_found_across_chunks(text, kept):
    stop = TextStop(["aab"])
    for letter in text:
        stop.push(letter)
    assert stop.found and stop.finish() == kept


def test_flush_gives_what_was_held_back_once():
    stop = TextStop(["\n\n"])
    stop.push("one\n")
    assert (stop.flush(), stop.flush()) == ("\n", "")
    assert stop.finish() == "one\n"


@settings(deadline=None)
@given(LETTERS, STOPS, st.lists(st.integers(0, 200), max_size=6))
def test_cutting_never_matters(text, stops, places):
    stop = TextStop(stops)
    said = "".join(stop.push(part) for part in cut(text.encode(), places))
    held = stop.flush()
    assert said + held == stop.finish() == until_stop(text, stops)
    assert stop.found == any(one in text for one in stops)


@settings(deadline=None)
@given(LETTERS, STOPS, st.lists(st.integers(0, 200), max_size=6))
def test_what_is_said_is_never_taken_back(text, stops, places):
    stop, said = TextStop(stops), ""
    for part in cut(text.encode(), places):
        said += stop.push(part)
        assert until_stop(text, stops).startswith(said)


class Plain:
    """TextStop, of letters alone, by comparing the text with every beginning of every string."""

    def __init__(self, strings):
        self.strings, self.said, self.held, self.found = strings, "", "", False

    def push(self, text):
        if self.found:
            return ""
        text = self.held + text
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.strings if stop in text]
        keep = max((n for stop in self.strings for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        end = min(places)[1] if places else len(text) - keep
        self.found, self.held = bool(places), "" if places else text[end:]
        self.said += text[:end]
        return text[:end]

    def flush(self):
        held, self.held = self.held, ""
        self.said += held
        return held


def compare(rng: random.Random, letters: str, strings: int, longest: int):
    """One text, in pieces, sometimes flushed on the way."""
    stops = ["".join(rng.choices(letters, k=rng.randint(1, longest))) for _ in range(rng.randint(0, strings))]
    stop, plain = TextStop(stops), Plain(stops)
    for _ in range(rng.randint(1, 12)):
        part = "".join(rng.choices(letters, k=rng.randint(0, 2 * longest)))
        if stops and rng.random() < 0.3:  # what nearly is one
            part += rng.choice(stops)[: rng.randint(0, longest)]
        assert stop.push(part if rng.random() < 0.5 else part.encode()) == plain.push(part)
        if rng.random() < 0.1:
            assert stop.flush() == plain.flush()
        assert stop.found == plain.found
    plain.flush()
    assert stop.finish() == plain.said


@pytest.mark.parametrize("times", [300, pytest.param(30_000, marks=pytest.mark.thorough)])
def test_it_stops_where_a_plain_search_does(times):
    rng = random.Random(times)
    for _ in range(times):
        compare(rng, rng.choice(["ab", "abc", "a\N{SNOWMAN}"]), rng.choice([1, 2, 5]), rng.choice([2, 4, 9, 20]))


def test_many_long_strings_cost_little():
    stop, began = TextStop(["a" * (960 + i) + "b" for i in range(64)]), time.process_time()
    for _ in range(2_000):
        stop.push("aa")
    assert time.process_time() - began < 5  # comparing with every beginning takes a minute
    stop.push("b")
    assert stop.found and stop.finish() == "a" * (4_000 - 1_023)
