"""Turns that must call, or may call only some functions: whatever is drawn under the masks, nothing else comes out."""

import json
import string

from as_written import written
from byte_tokenizer import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
import numpy as np
import pytest
from ruled import ANSWER, CALL, GOOD, PARAMETERS, SCHEMA, TOOLS, asked, told
from small_vocabulary import small_vocabulary

from gptoss_jax.grammar import for_chat
from gptoss_jax.harmony import Continued, parse

BOTH, THIRD = ("weather", "now"), [*TOOLS, {"name": "weather-2", "parameters": PARAMETERS}]
WEATHER, ANALYSIS = "C!commentary to=functions.weather K!jsonM!", "C!analysisM!"


def made(tokenizer, names=BOTH, *, required=True, form=None, tools=TOOLS, **options):
    return for_chat(tokenizer, form, tools, vocab_size=tokenizer.vocab_size + 70, names=names, required=required, **options)


@pytest.mark.parametrize(
    "turn",
    [
        f"{WEATHER}{CALL}A!",
        "C!commentary to=functions.now K!jsonM!{}A!",
        f"{ANALYSIS}Rain? 1 < 2.E!S!assistant{WEATHER}{CALL}A!",
        f"{ANALYSIS}E!S!assistant{ANALYSIS}aE!S!assistant{WEATHER}{CALL}A!",
    ],
)
def test_reasoning_and_then_a_call(tokenizer, turn):
    rules = made(tokenizer)
    told(rules, tokenizer, turn)
    read = parse(tokenizer, written(tokenizer, turn))
    assert not rules.problem and not read.malformed and not read.incomplete and len(read.tool_calls) == 1


@pytest.mark.parametrize(
    "turn, other",
    [
        ("", "R!"), ("", "A!"), ("", "M!"), ("", "x"), ("", " to=functions.weatherC!"), ("C!", "final"), ("C!commentary", "M!"),
        ("C!commentary to=functions", "s"), ("C!commentary to=functions.weather", "M!"), ("C!commentary to=functions.now ", "M!"),
        ("C!commentary to=functions.now K!json", "K!"), (ANALYSIS, "R!"), (ANALYSIS, "A!"), (ANALYSIS, "<|endoftext|>"),
        (f"{ANALYSIS}Hm", "C!"), (f"{ANALYSIS}Hm", "S!"), (f"{ANALYSIS}E!", "R!"), (f"{ANALYSIS}E!S!", "user"),
        (f"{ANALYSIS}E!S!assistantC!", "final"), (WEATHER, "A!"), (f"{WEATHER}{CALL}", "R!"), (f"{WEATHER}{CALL}", "E!"),
    ],
)  # fmt: skip
def test_what_may_not_come_where_a_call_must(tokenizer, turn, other):
    rules = made(tokenizer)
    told(rules, tokenizer, turn)
    token = written(tokenizer, other)[0]
    assert token not in asked(rules, tokenizer)[1]
    rules = made(tokenizer)
    told(rules, tokenizer, turn)
    try:
        rules.advance(token)
    except ValueError as error:
        assert "that its mask allows" in str(error)
    else:
        assert "came where it must not" in rules.problem


def test_free_masks_hold_until_a_pause(tokenizer):
    rules = made(tokenizer, required=False)
    before, paused = None, True
    for token in written(tokenizer, f"{ANALYSIS}Is it so?E!S!assistantC!commentaryM!OhE!S!assistantC!finalM!Yes.R!"):
        constrained, ids = asked(rules, tokenizer)
        if not paused and not before[0]:
            assert (constrained, ids.tolist()) == before
        rules.advance(token)
        before, paused = (constrained, ids.tolist()), token in rules.pauses
    assert rules.pauses == tuple(written(tokenizer, "E!")) and not rules.problem


@pytest.mark.parametrize(
    "turn", ["C!finalM!HiR!", "C!commentaryM!Let me see.E!S!assistantC!analysisM!HmE!S!assistantC!finalM!R!", "C!finalM!"]
)
def test_where_none_is_required_the_turn_may_answer(tokenizer, turn):
    told(made(tokenizer, ["now"], required=False), tokenizer, turn)
    assert asked(made(tokenizer, ["now"], required=False), tokenizer)[1].tolist() == written(tokenizer, "C!")


def test_of_names_that_begin_alike_only_the_allowed_one_can_come(tokenizer):
    for names, ends in ((["weather"], " K!"), (["weather-2"], "-"), (["weather", "weather-2"], " -")):
        rules = made(tokenizer, names, tools=THIRD)
        told(rules, tokenizer, "C!commentary to=functions.weather")
        found = {tokenizer.decode([i]) for i in asked(rules, tokenizer)[1]}
        assert {one[0] for one in found} == set(ends) - set("K!")


def test_arguments_that_are_not_ruled_are_free_text(tokenizer):
    rules = made(tokenizer, ["weather"], required=False, ruled=())
    told(rules, tokenizer, f"{WEATHER}no JSON [A!")
    assert asked(rules, tokenizer)[1].tolist() == written(tokenizer, "A!")


@pytest.mark.parametrize("channel, end", [("analysis", "E!"), ("commentary", "E!"), ("final", "R!")])
def test_a_turn_that_is_begun_goes_on(tokenizer, channel, end):
    told(made(tokenizer, ["now"], required=False, continued=Continued(((channel, "It is "),))), tokenizer, "sunny." + end)


def test_an_answer_that_is_begun_stays_in_its_form(tokenizer):
    rules = made(tokenizer, ["now"], required=False, form=ANSWER, continued=Continued((("final", '{"n":'),)))
    assert not set(tokenizer.decode(asked(rules, tokenizer)[1])) & set(string.ascii_letters)
    told(rules, tokenizer, GOOD[5:] + "R!")
    with pytest.raises(ValueError, match="response_format must allow what the last message begins with; got 'Hi'"):
        made(tokenizer, ["now"], required=False, form=ANSWER, continued=Continued((("final", "Hi"),)))


def drawn(rules, tokenizer, draw, most=400):
    """Tokens drawn under the masks: those that end what is free come now and then."""
    tokens, ends = [], {tokenizer.special[name] for name in ("<|return|>", "<|call|>")}
    while len(tokens) < most and not (tokens and tokens[-1] in ends):
        constrained, ids = asked(rules, tokenizer)
        control = [i for i in ids if tokenizer.control_name(int(i))]
        token = int(draw.choice(control if control and not constrained and draw.random() < 0.1 else ids))
        rules.advance(token)
        tokens.append(token)
    return tokens


@settings(deadline=None, max_examples=40)
@given(
    st.randoms(use_true_random=False), st.sets(st.sampled_from(["weather", "now", "weather-2"]), min_size=1), st.booleans(), st.booleans(),
    st.sampled_from([small_vocabulary, ByteTokenizer]),
)  # fmt: skip
def test_whatever_is_drawn_only_what_may_be_called_is(random, names, required, formed, vocabulary):
    """Every turn ends with a call if one is required; no turn calls twice, calls anything else, or breaks the format."""
    tokenizer = _one(vocabulary)
    rules = made(tokenizer, names, required=required, form=ANSWER if formed else None, tools=THIRD)
    tokens = drawn(rules, tokenizer, np.random.default_rng(random.getrandbits(64)))
    read = parse(tokenizer, tokens)
    assert not rules.problem and all("invalid UTF-8" in problem for problem in read.problems) and len(read.tool_calls) <= 1
    assert {message.channel for message in read.messages} <= {"analysis", "commentary", "final"}
    assert not required or all(message.channel == "analysis" or message.tool_call for message in read.messages)
    if read.incomplete:
        assert len(tokens) == 400
        return
    last = read.messages[-1]
    assert last.tool_call or not required
    if last.tool_call:
        assert last.end == "<|call|>" and last.tool_call.name in names and last.tool_call.valid
        jsonschema.validate(last.tool_call.parsed, {"const": {}} if last.tool_call.name == "now" else PARAMETERS)
    elif formed:
        jsonschema.validate(json.loads(read.final), SCHEMA)


_VOCABULARIES = {}


def _one(vocabulary):
    return _VOCABULARIES.setdefault(vocabulary, vocabulary())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True), min_size=1, max_size=6, unique=True), st.data())
def test_any_name_can_be_called(names, data):
    tools = [{"name": name} for name in names]
    wanted = data.draw(st.sampled_from(names))
    tokenizer = small_vocabulary()
    turn = f"C!commentary to=functions.{wanted} K!jsonM!{{}}A!"
    rules = made(tokenizer, names, tools=tools)
    told(rules, tokenizer, turn)
    [call] = parse(tokenizer, written(tokenizer, turn)).tool_calls
    assert call.name == wanted and not rules.problem
