"""Constrained turns that the caller has begun: what is there already is taken by the grammar, or refused."""

import json
import string

from as_written import SHORT, written
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from ruled import ANSWER, CALL, GOOD, TOOLS, asked, told
from small_vocabulary import small_vocabulary

from gptoss_jax.grammar import for_chat
from gptoss_jax.harmony import continued


def begun(tokenizer, last, response_format=ANSWER, tools=TOOLS):
    turn = continued([{"role": "user", "content": "?"}, {"role": "assistant", **last}])
    return for_chat(tokenizer, response_format, tools, vocab_size=tokenizer.vocab_size + 70, continued=turn)


@pytest.mark.parametrize(
    ("last", "rest", "ruled"),
    [
        ({"content": '{"n'}, '": 1, "s": "ü"}R!', ['": 1, "s": "ü"}R!']),
        ({"content": ""}, f"{GOOD}R!", [f"{GOOD}R!"]),
        ({"reasoning": "Hm", "content": GOOD[:8]}, f"{GOOD[8:]}R!", [f"{GOOD[8:]}R!"]),
        ({"content": GOOD}, "R!", ["R!"]),
        ({"reasoning": "{1}?"}, f" Yes.E!S!assistantC!finalM!{GOOD}R!", ["S!", f"{GOOD}R!"]),
        (
            {"channel": "commentary", "content": "Let"},
            f" me.E!S!assistantC!analysisM!HmE!S!assistantC!finalM!{GOOD}R!",
            ["S!", "S!", f"{GOOD}R!"],
        ),
        ({"reasoning": "Go"}, f"E!S!assistantC!commentary to=functions.weatherM!{CALL}A!", ["S!", f"{CALL}A!"]),
    ],
)
def test_what_is_constrained_in_a_turn_that_was_begun(tokenizer, last, rest, ruled):
    rules = begun(tokenizer, last)
    stretches = told(rules, tokenizer, rest)
    for short, name in SHORT.items():
        stretches = [text.replace(name, short) for text in stretches]
    assert stretches == ruled and not rules.problem


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("It is", "got 'It is' after '', at character 0"),
        ('{"m": 1', "after '{\"', at character 2"),
        (GOOD + "}", "at character 18"),
        ('{"n": 100', "at character 8"),
        ('{"n": 1, "s": "üüüüüü', "at character 20"),
    ],
)
def test_a_beginning_that_no_answer_has_is_refused(small, content, says):
    with pytest.raises(ValueError, match=r"response_format must allow what the last message begins with; got .* begin it as") as refused:
        begun(small, {"content": content})
    assert says in str(refused.value)


def test_a_beginning_is_of_no_interest_where_nothing_rules_it(tokenizer):
    rules = begun(tokenizer, {"content": "It is"}, None, TOOLS)
    assert told(rules, tokenizer, " so.E!S!assistantC!commentary to=functions.nowM!{}A!") == ["<|start|>", "{}<|call|>"]
    assert begun(tokenizer, {"content": "It is"}, None, None) is None
    rules = begun(tokenizer, {"reasoning": '{"m'})
    assert asked(rules, tokenizer)[0] is False and rules.pauses == tuple(written(tokenizer, "M!E!"))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_an_answer_may_be_cut_anywhere_and_go_on(data):
    tokenizer = small_vocabulary()
    answer = json.dumps(
        {"n": data.draw(st.integers(0, 99)), "s": data.draw(st.text(string.ascii_letters + "é\U0001f600", max_size=5))}, ensure_ascii=False
    )
    cut = data.draw(st.integers(0, len(answer)))
    assert told(begun(tokenizer, {"content": answer[:cut]}), tokenizer, answer[cut:] + "R!") == [answer[cut:] + "<|return|>"]
