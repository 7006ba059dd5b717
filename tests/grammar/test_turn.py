"""Constrained chat turns: reasoning and headers are free, answers and arguments are not, and no way leads around the answer."""

import json
import string

from as_written import SHORT, headers, written
from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
import numpy as np
import pytest
from ruled import ANSWER, CALL, GOOD, PARAMETERS, SCHEMA, TOOLS, asked, made, told
from small_vocabulary import small_vocabulary

from gptoss_jax.grammar import for_chat
from gptoss_jax.harmony import parse


@pytest.mark.parametrize(
    ("turn", "ruled"),
    [
        (f"C!finalM!{GOOD}R!", [GOOD + "R!"]),
        (f"C!analysisM!Is it {{1}}? Yes.E!S!assistantC!finalM!{GOOD}R!", ["S!", GOOD + "R!"]),
        (f"C!commentaryM!Let me see.E!S!assistantC!analysisM!HmE!S!assistantC!finalM!{GOOD}R!", ["S!", "S!", GOOD + "R!"]),
        (f"C!final K!jsonM!{GOOD}R!", [GOOD + "R!"]),
        (f" C! final M!{GOOD}R!", [GOOD + "R!"]),
        (f"M!{GOOD}R!", [GOOD + "R!"]),  # without a channel it is read as the answer
        (f"C!K!M!{GOOD}R!", [GOOD + "R!"]),
        (f" finalM!{GOOD}R!", [GOOD + "R!"]),
        (f"C!fnialM!{GOOD}R!", [GOOD + "R!"]),
        (f"C!thoughtsM!{GOOD}R!", [GOOD + "R!"]),  # on no channel that there is: it is read as the answer
        (f"C!analysisM!E!S!userM!whateverE!S!M!{GOOD}R!", ["S!", "S!", GOOD + "R!"]),
        (f"C!commentary to=functions.weather K!jsonM!{CALL}A!", [CALL + "A!"]),
        (f" to=functions.weatherC!commentary jsonM!{CALL}A!", [CALL + "A!"]),
        (f"C!analysis to=functions.weather codeM!{CALL}A!", [CALL + "A!"]),
        (f"C!final to=weatherM!{CALL}A!", [CALL + "A!"]),
        (f"C!analysisM!HmE!S!assistant to=functions.weatherC!commentaryM!{CALL}A!", ["S!", CALL + "A!"]),
        ("C!commentary to=functions.nowM!{}A!", ["{}A!"]),
        (f"C!commentary to=functions.otherM!oopsE!S!assistantC!finalM!{GOOD}R!", ["S!", GOOD + "R!"]),
    ],
)
def test_what_is_constrained_in_a_turn(tokenizer, turn, ruled):
    rules = made(tokenizer, ANSWER, TOOLS)
    stretches = told(rules, tokenizer, turn)
    for short, name in SHORT.items():
        stretches = [text.replace(name, short) for text in stretches]

    assert stretches == ruled
    assert not rules.problem
    parsed = parse(tokenizer, written(tokenizer, turn))
    checked = [call.arguments for call in parsed.tool_calls if call.name != "other"] + [parsed.final] * bool(parsed.final)
    assert checked == [ruled[-1][:-2]]


@pytest.mark.parametrize(
    ("turn", "other"),
    [
        (f"C!finalM!{GOOD}", "E!"),
        (f"C!finalM!{GOOD}", "A!"),
        ("C!finalM!", "R!"),
        ("C!finalM!", "["),
        ('C!finalM!{"n": 1', "}"),
        ("", "R!"),
        ("C!final", "R!"),
        ("C!finalHi", "E!"),  # would be read as an answer
        ("Hi", "S!"),
        ("C!analysisM!So", "R!"),
        ("C!analysisM!So", "A!"),
        ("C!analysisM!So", "S!"),
        ("C!analysisM!So", "C!"),
        ("C!analysisM!SoE!", "C!"),
        ("C!analysisM!SoE!", "R!"),
        ("C!analysisM!SoE!", "x"),
        ("C!commentary to=functions.otherM!x", "A!"),
        ("C!commentary to=functions.weatherM!" + CALL, "R!"),
        ("C!commentary to=functions.weatherM!" + CALL, "E!"),
        ("C!commentary to=functions.weatherM!", "A!"),
        ("C!commentary to=functions.nowM!{", '"'),
    ],
)
def test_what_may_not_come_when_an_answer_is_asked_for(tokenizer, turn, other):
    rules = made(tokenizer, ANSWER, TOOLS)
    told(rules, tokenizer, turn)
    assert written(tokenizer, other)[0] not in asked(rules, tokenizer)[1]


def test_free_masks_change_only_after_a_pause(tokenizer):
    rules = made(tokenizer, ANSWER, TOOLS)
    before, paused = None, True
    for token in written(tokenizer, f"C!analysisM!Is it so?E!S!assistantC!commentaryM!OhE!S!assistantC!finalM!{GOOD}R!"):
        constrained, ids = asked(rules, tokenizer)
        if not paused and not before[0]:
            assert (constrained, ids.tolist()) == before
        rules.advance(token)
        before, paused = (constrained, ids.tolist()), token in rules.pauses
    assert rules.pauses == tuple(written(tokenizer, "M!E!"))


def test_tools_alone_leave_the_answer_and_other_calls_free(tokenizer):
    rules = made(tokenizer, None, TOOLS)
    assert rules.pauses == tuple(written(tokenizer, "M!E!"))
    free = ["C!finalM!{]R!", "C!analysisM!HmE!S!assistantC!finalM!xR!", "C!commentary to=functions.otherM!xA!", "C!finalM!x<|endoftext|>"]
    for turn in free:
        assert set(told(made(tokenizer, None, TOOLS), tokenizer, turn)) <= {"<|start|>"}
    assert told(made(tokenizer, None, TOOLS), tokenizer, "C!commentary to=functions.weatherM!" + CALL + "A!") == [CALL + "<|call|>"]


@pytest.mark.parametrize("more", ["A!", "E!", "R!", "S!"])
@pytest.mark.parametrize("header", ["C!commentary to=functions.weather K!json", " to=functions.now", "C!finalM!HiE!S! to=functions.now{}"])
def test_with_tools_alone_no_call_comes_without_its_message_token(tokenizer, header, more):
    rules = made(tokenizer, None, TOOLS)
    told(rules, tokenizer, header)
    assert written(tokenizer, more)[0] not in asked(rules, tokenizer)[1]


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ("C!analysisM!HmR!", "<|return|> came where it must not, in a message's content"),
        ("C!final HiE!", "<|end|> came where it must not, in a message's header"),
        ("C!analysisM!HmC!finalM!", "<|channel|> came where it must not, in a message's content"),
    ],
)
def test_an_engine_that_does_not_mask_free_text_is_told_and_goes_on(tokenizer, turn, problem):
    rules = made(tokenizer)
    told(rules, tokenizer, turn, honest=False)
    assert rules.problem == problem


def test_unknown_ids_in_free_text_are_taken(small):
    rules = made(small)
    for token in (-1, 10**9, *written(small, "C!finalM!")):
        rules.advance(token)
    assert asked(rules, small)[0] is True


def test_a_token_outside_a_constrained_body_is_refused(tokenizer):
    rules = made(tokenizer)
    told(rules, tokenizer, "C!finalM!")
    with pytest.raises(ValueError, match="must get tokens that its mask allows"):
        rules.advance(written(tokenizer, "R!")[0])


WORDS = ["analysis", "final", "commentary", "assistant", " to=functions.weather", " json", "{}", "\n", "Hi "]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_model_draws_the_turn_ends_with_a_checked_answer_or_call(tokenizer, seed):
    """A model that knows harmony's words but not its order: it mixes control tokens, words of headers and any tokens at all."""
    draw = np.random.default_rng(seed)
    control = [i for i in tokenizer.special.values() if tokenizer.control_name(i) != "<|endoftext|>"]
    rules, tokens, queue = made(tokenizer, ANSWER, TOOLS), [], []
    ends = written(tokenizer, "R!A!")
    while not tokens or tokens[-1] not in ends:
        assert len(tokens) < 3000
        constrained, ids = asked(rules, tokenizer)
        if constrained:
            token, queue = int(draw.choice(ids)), []
        else:
            kind = draw.random()
            if not queue and kind < 0.4:
                queue = [int(draw.choice(control))]
            elif not queue:
                queue = tokenizer.encode(str(draw.choice(WORDS))) if kind < 0.9 else [int(draw.choice(ids))]
            token = queue.pop(0)
            if token not in ids:
                continue
        rules.advance(token)
        tokens.append(token)

    parsed = parse(tokenizer, tokens)
    assert not parsed.incomplete and not rules.problem
    last = parsed.messages[-1]
    if last.tool_call:
        assert parsed.final == ""
        jsonschema.validate(last.tool_call.parsed, PARAMETERS)
    else:
        jsonschema.validate(json.loads(parsed.final), SCHEMA)
    earlier = [message.tool_call.name for message in parsed.messages[:-1] if message.tool_call]
    assert not {"weather", "now"} & set(earlier)


FREE = {"type": "regex", "regex": "[A-Z]+"}
KNOWN = ("weather", "now")


@settings(deadline=None, max_examples=100)
@given(headers(), st.sampled_from(["", "C!analysisM!HmE!S!", "C!analysisM!HmE!", "C!commentary to=otherM!HmE!S!assistant"]), st.booleans())
def test_what_the_parser_reads_is_what_the_grammar_rules(header, before, with_answer):
    """Of any header: a call of a known function has its parameters, the answer its form, all else none."""
    small = small_vocabulary()
    for one, other in (("functions.f", "functions.weather"), ("to=f", "to=weather"), ("g", "now")):
        header = header.replace(one, other)
    turn = f"{before}{header}M!"
    rules = made(small, FREE if with_answer else None, TOOLS)
    for token in written(small, turn):
        rules.advance(token)
    constrained, ids = asked(rules, small)
    read = parse(small, [*written(small, turn), *small.encode("x")]).messages[-1]
    assert read.text == "x"
    name = read.tool_call and read.tool_call.name
    assert constrained == (name in KNOWN or (read.answers and with_answer))
    if constrained and name is None:
        assert set(small.decode(ids)) <= set(string.ascii_uppercase)
    elif constrained:
        assert small.decode(ids).strip() == "{"
        rules.advance(small.encode("{")[0])
        assert ("}" in small.decode(asked(rules, small)[1])) == (name == "now")


@pytest.mark.parametrize(("response_format", "tools"), [(None, None), ({"type": "text"}, None), (None, []), ({"type": "text"}, ())])
def test_nothing_asked_nothing_constrained(small, response_format, tools):
    assert made(small, response_format, tools) is None


def function(properties):
    return {"name": "f", "parameters": {"type": "object", "properties": properties, "required": list(properties)}}


@pytest.mark.parametrize(
    ("response_format", "tools", "match"),
    [
        ({"type": "xml"}, TOOLS, "response_format: type must be one of"),
        (None, [{"name": "a b"}], r"tools\[0\]: a function's name must be"),
        (None, [*TOOLS, {"name": "f", "parameters": {"type": "array"}}], r"tools\[2\]: parameters must describe an object"),
        (None, [function({"x": {"uniqueItems": True}})], r"tools\[0\]: parameters .*uniqueItems.* at \$.properties.x"),
        (None, [function({"x": {"$ref": "#"}})], r"tools\[0\]: parameters must accept some value"),
        (None, [function({"x": {"const": {1}}})], r"tools\[0\]: parameters must hold nothing but JSON"),
        (None, "weather", "tools must be a list of function definitions"),
        (None, TOOLS + TOOLS, "tools must have different names; now, weather"),
    ],
)
def test_tools_and_formats_are_checked_at_the_door(small, response_format, tools, match):
    with pytest.raises(ValueError, match=match):
        made(small, response_format, tools)


def test_logits_narrower_than_the_vocabulary_are_refused(small):
    with pytest.raises(ValueError, match="vocab_size must be at least the tokenizer's 365; got 364"):
        for_chat(small, ANSWER, None, vocab_size=364)
