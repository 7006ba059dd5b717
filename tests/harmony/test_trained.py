"""Where loss belongs: on what the model itself writes, in the context that it has when it writes it."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax import harmony
from gptoss_jax.tokenizer import o200k

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOLS = [{"name": "f", "description": "An f.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}]
SHORT = {"model_identity": None, "knowledge_cutoff": None}
VOCABULARIES = st.sampled_from([o200k, small_vocabulary])


def user(text="q"):
    return {"role": "user", "content": text}


def answer(text, reasoning=None):
    return {"role": "assistant", "content": text} | ({} if reasoning is None else {"thinking": reasoning})


CALLED = {"role": "assistant", "reasoning": "r", "content": "a word", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "res"}
LONG = [{"role": "system", "content": "Be kind."}, user(), answer("A1", "r1"), user("q2"), CALLED, RESULT, answer("A2", "r2")]


def shown(messages, train_on, tokenizer=None):
    """The conversation as text, with what is to be learnt in brackets."""
    tokenizer = tokenizer or o200k()
    rendered, parts = harmony.render_for_training(tokenizer, messages, train_on, tools=TOOLS, **SHORT), []
    for i, (token, learnt) in enumerate(zip(rendered.ids, rendered.mask, strict=True)):
        before, after = ([False, *rendered.mask][i], [*rendered.mask, False][i + 1])
        parts += ["[" * (learnt and not before), tokenizer.decode([token]), "]" * (learnt and not after)]
    text = "".join(parts)
    return text[text.index("<|start|>user") :]


BEFORE = "<|start|>user<|message|>q<|end|>"
FIRST = "<|channel|>analysis<|message|>r1<|end|>", "<|start|>assistant<|channel|>final<|message|>A1"
SECOND = "<|start|>user<|message|>q2<|end|>"
CALLS = (
    "<|channel|>analysis<|message|>r<|end|><|start|>assistant<|channel|>commentary<|message|>a word<|end|>",
    '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
)
BETWEEN = "<|start|>functions.f<|channel|>commentary to=assistant<|message|>res<|end|>"
LAST = "<|channel|>analysis<|message|>r2<|end|>", "<|start|>assistant<|channel|>final<|message|>A2<|return|>"
START = "<|start|>assistant"
EXPECTED = {
    "final": f"{BEFORE}{START}{FIRST[0]}[{FIRST[1]}]<|end|>{SECOND}{START}{CALLS[0]}{CALLS[1]}{BETWEEN}{START}{LAST[0]}[{LAST[1]}]",
    "assistant": f"{BEFORE}{START}[{FIRST[0]}{FIRST[1]}]<|end|>{SECOND}{START}[{CALLS[0]}{CALLS[1]}]{BETWEEN}{START}[{LAST[0]}{LAST[1]}]",
    "calls": f"{BEFORE}{START}{FIRST[0]}{FIRST[1]}<|end|>{SECOND}{START}{CALLS[0]}[{CALLS[1]}]{BETWEEN}{START}{LAST[0]}{LAST[1]}",
}


@pytest.mark.parametrize("train_on", EXPECTED)
def test_what_is_to_be_learnt(train_on, tokenizer):
    """The second answer's prompt shows the reasoning of the first: with a pending result openai_harmony drops none."""
    assert shown(LONG, train_on, tokenizer) == EXPECTED[train_on]


def test_an_earlier_turn_stands_there_as_the_prompt_of_the_last_one_shows_it():
    text = shown([user(), answer("A1", "r1"), user("q2"), answer("A2", "r2")], "assistant")
    assert text == f"{BEFORE}{START}[<|channel|>final<|message|>A1]<|end|>{SECOND}{START}[{LAST[0]}{LAST[1]}]"


@pytest.mark.parametrize("messages, last", [
    ([user(), CALLED], f"{START}[{CALLS[0]}{CALLS[1]}]"),
    ([user(), {"role": "assistant", "reasoning": "r"}], f"{START}[<|channel|>analysis<|message|>r<|end|>]"),
    ([user(), {"role": "assistant", "reasoning": "r"}, answer("A")],
     f"{START}[<|channel|>analysis<|message|>r<|end|>{START}<|channel|>final<|message|>A<|return|>]"),
    ([user(), answer("A"), answer("B")], f"{START}[<|channel|>final<|message|>A]<|end|>{START}[<|channel|>final<|message|>B<|return|>]"),
    ([user(), answer("")], f"{START}[<|channel|>final<|message|><|return|>]"),
    ([user(), {**CALLED, "content": None, "reasoning": None, "tool_calls": [CALL, CALL]}],
     f"{START}[{CALLS[1].removeprefix(START)}]{START}[{CALLS[1].removeprefix(START)}]"),
])  # fmt: skip
def test_how_a_conversation_may_end(messages, last):
    assert shown(messages, "assistant") == BEFORE + last


def test_a_function_is_asked_of_every_message_that_is_there():
    seen = []
    text = shown(LONG, lambda one: (seen.append(one), one.role == "tool" or (one.last and one.answers))[1])
    assert text == EXPECTED["final"].replace(f"[{FIRST[1]}]", FIRST[1]).replace(
        "functions.f<|channel|>commentary to=assistant<|message|>res<|end|>",
        "functions.f[<|channel|>commentary to=assistant<|message|>res<|end|>]",
    )
    assert [(one.role, one.channel, one.index, one.last) for one in seen] == [
        ("system", None, None, False), ("developer", None, 0, False), ("user", None, 1, False), ("assistant", "analysis", 2, False),
        ("assistant", "final", 2, False), ("user", None, 3, False), ("assistant", "analysis", 4, False),
        ("assistant", "commentary", 4, False), ("assistant", "commentary", 4, False), ("tool", "commentary", 5, False),
        ("assistant", "analysis", 6, True), ("assistant", "final", 6, True),
    ]  # fmt: skip
    assert [one.text for one in seen[1:6]] == ["Be kind.", "q", "r1", "A1", "q2"] and [one.call for one in seen if one.call] == ["f"]
    assert seen[8].recipient == "functions.f" and not seen[8].answers and seen[4].answers


TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.sampled_from(["<|end|>", "<|start|>assistant", "x" * 1500])
)


@st.composite
def conversations(draw):
    messages = draw(st.sampled_from([[], [{"role": "system", "content": "S"}], [{"role": "developer", "content": "\ue0000."}]]))[:]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["answer", "answer", "call", "reasoning"]))
        messages += draw(st.sampled_from([[user()], [user("<|message|>"), {"role": "developer", "content": "D"}], []]))
        said = {"role": "assistant"} | draw(st.sampled_from([{}, {"thinking": "hm"}, {"reasoning": "<|return|>"}]))
        if kind == "answer":
            messages.append(said | {"content": draw(TEXT)})
        elif kind == "reasoning":
            messages.append({"role": "assistant", "reasoning_content": draw(TEXT) or "r"})
        else:
            messages.append(said | {"content": draw(st.sampled_from([None, "w"])), "tool_calls": [CALL]})
            messages += draw(st.sampled_from([[], [RESULT]]))
    return messages if messages[-1]["role"] == "assistant" else [*messages, answer("E", draw(st.sampled_from([None, "r"])))]


def last_turn(tokenizer, messages, **options):
    """What is learnt of a conversation's last turn, and the messages that were asked about."""
    seen = []
    return harmony.render_for_training(tokenizer, messages, lambda one: (seen.append(one), one.last)[1], **options), seen


@settings(max_examples=25, deadline=None)
@given(conversations(), VOCABULARIES, st.sampled_from([None, TOOLS]))
def test_every_turn_is_once_the_last_behind_the_prompt_that_the_model_gets(messages, vocabulary, tools):
    """Whatever is chosen the ids are the same; what is learnt of the last turn, and nothing else, reads as what it was made of."""
    tokenizer, options = vocabulary(), {"tools": tools, **SHORT}
    turns = harmony.turns(messages)
    assert turns[-1] == messages and [len(turn) for turn in turns] == sorted({len(turn) for turn in turns})
    for turn in turns:
        whole, views = last_turn(tokenizer, turn, **options)
        masks = {name: harmony.render_for_training(tokenizer, turn, name, **options) for name in ("final", "assistant", "calls")}
        assert all(one.ids == whole.ids and len(one.mask) == len(one.ids) for one in masks.values())
        assert all(b or not (a or c) for a, b, c in zip(*(one.mask for one in masks.values()), strict=True))
        begin = whole.mask.index(True)
        assert whole.mask[begin:] == masks["assistant"].mask[begin:] == [True] * (len(whole.ids) - begin)
        before = next(n for n in range(len(turn) - 1, -1, -1) if n == 0 or not (turn[n - 1].keys() == {"role", "reasoning_content"}))
        prompt = harmony.render(tokenizer, turn[:before], **options) if before else whole.ids[:begin]
        assert whole.ids[:begin] == prompt
        said = harmony.parse(tokenizer, whole.ids[begin:])
        made = [(one.channel, one.recipient, one.text) for one in views if one.last]
        assert not said.malformed and [(one.channel, one.recipient, one.text) for one in said.messages] == made


@pytest.mark.parametrize("train_on, said", [
    ("answers", "train_on must be one of final, assistant, calls, or a function; got 'answers'; pass one of them"),
    (True, "train_on must be one of final, assistant, calls, or a function; got True; pass one of them"),
    (["final"], r"train_on must be one of final, assistant, calls, or a function; got \['final'\]; pass one of them"),
    (lambda one: 1, r"train_on must say of every message True or False; got 1 \(of the options, role system\); return bool\("),
    (lambda one: one.role == "system" or None, r"train_on must say of every message True or False; got None \(of messages\[0\], role u"),
    (lambda one: {}["x"], "train_on must say of every message True or False; it raised KeyError: 'x' .of the options, role system.; mend"),
    (lambda: True, "train_on must say of every message True or False; it raised TypeError: "),
])  # fmt: skip
def test_what_says_not_what_to_learn_is_refused(train_on, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        harmony.render_for_training(o200k(), [user(), answer("A")], train_on)


@pytest.mark.parametrize("messages, said", [
    ([user()], "with train_on the last message must be the assistant's; got the role user; append the turn"),
    ([user(), CALLED, RESULT], "with train_on the last message must be the assistant's; got the role tool; append the turn"),
    ([{"role": "system", "content": "S"}], "with train_on the last message must be the assistant's; got the role system; append the turn"),
    ([], "messages is empty"),
    (None, "messages must be a list; got NoneType"),
    ([user(), {"role": "assistant"}], r"messages\[1\] has neither content, reasoning nor tool_calls"),
])  # fmt: skip
def test_conversations_without_a_turn_to_learn_are_refused(messages, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        harmony.render_for_training(o200k(), messages, "assistant")


def test_turns_of_a_conversation():
    assert [len(turn) for turn in harmony.turns(LONG)] == [3, 5, 7]
    assert harmony.turns([user()]) == []
    assert [len(turn) for turn in harmony.turns([user(), {"role": "assistant", "reasoning": "r"}, answer("A"), answer("B")])] == [3, 4]
    with pytest.raises(ValueError, match=r"^messages\[0\] must be a dict"):
        harmony.turns([7])


def test_each_of_several_calls_of_a_message_is_once_the_last_turn():
    several = CALLED | {"tool_calls": [CALL, CALL | {"id": "2"}, CALL | {"id": "3"}]}
    turns = harmony.turns([user(), several, RESULT, RESULT | {"tool_call_id": "2"}, RESULT | {"tool_call_id": "3"}, answer("A")])
    assert turns[2][-1] is several and [len(turn) for turn in turns] == [2, 2, 2, 6]
    assert shown(turns[0], lambda one: one.last) == f"{BEFORE}{START}[{CALLS[0]}{CALLS[1]}]"
    again = CALLS[1].removeprefix(START)
    assert shown(turns[1], lambda one: one.last) == f"{BEFORE}{START}{CALLS[0]}{CALLS[1]}{START}[{again}]"
    assert shown(turns[2], lambda one: one.last) == f"{BEFORE}{START}{CALLS[0]}{CALLS[1]}{START}{again}{START}[{again}]"


def test_what_is_rendered_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        harmony.render_for_training(o200k(), LONG, "final").ids = []
