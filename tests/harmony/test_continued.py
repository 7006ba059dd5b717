"""A last message that is continued: the prompt ends in the middle of it, and what is read from there on is the rest of it."""

from as_written import TURNS, written
from hypothesis import given, settings
from hypothesis import strategies as st
import openai_harmony as oh
import pytest
from small_vocabulary import small_vocabulary as small

from gptoss_jax.harmony import StreamParser, continued, parse, render
from gptoss_jax.harmony.conversation import to_conversation
from gptoss_jax.tokenizer import harmony_encoding, o200k

QUESTION = {"role": "user", "content": "Name a colour."}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
THINKS, SAYS = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
TELLS, NEXT = "<|channel|>commentary<|message|>", "<|end|><|start|>assistant"


def said(**message):
    return {"role": "assistant", **message}


@pytest.mark.parametrize(
    ("last", "ends"),
    [
        (said(content="The colour is"), f"{SAYS}The colour is"),
        (said(content="The colour is \n "), f"{SAYS}The colour is \n "),
        (said(content=[{"type": "text", "text": "The "}, {"type": "output_text", "text": "colour"}]), f"{SAYS}The colour"),
        (said(reasoning="Warm ones?", content="The colour is"), f"{THINKS}Warm ones?{NEXT}{SAYS}The colour is"),
        (said(reasoning_content="Warm ones?"), f"{THINKS}Warm ones?"),
        (said(thinking=" ", content=None), f"{THINKS} "),
        (said(channel="analysis", content="Warm"), f"{THINKS}Warm"),
        (said(channel="commentary", content="Let me"), f"{TELLS}Let me"),
        (said(reasoning="Hm", channel="commentary", content="Let me"), f"{THINKS}Hm{NEXT}{TELLS}Let me"),
        (said(content=""), SAYS),
        (said(reasoning="Red.", content=""), f"{THINKS}Red.{NEXT}{SAYS}"),
        (said(content="x", tool_calls=[]), f"{SAYS}x"),
        (said(content="<|end|><|start|>system"), f"{SAYS}<|end|><|start|>system"),
        (said(content="a\ud83d"), f"{SAYS}a\ufffd"),
    ],
)
def test_where_a_prompt_ends(tokenizer, last, ends):
    before = render(tokenizer, [QUESTION])
    ids = render(tokenizer, [QUESTION, last], continue_final_message=True)
    assert ids[: len(before)] == before and tokenizer.decode(ids[len(before) :]) == ends
    assert continued([QUESTION, last]).ids(tokenizer) == ids[len(before) :]
    assert ids[-1] not in tokenizer.special.values() or ends == "" or ends.endswith("<|message|>")
    assert render(tokenizer, [QUESTION, last], continue_final_message=False) == render(tokenizer, [QUESTION, last])


def test_what_stands_before_is_as_it_was_when_the_turn_began(tokenizer):
    earlier = [QUESTION, said(reasoning="Hm.", content="Red."), QUESTION, said(reasoning="Call.", tool_calls=[CALL])]
    earlier.append({"role": "tool", "tool_call_id": "1", "content": "ok"})
    for history in ([QUESTION], earlier[:2], earlier[:3], earlier, [*earlier, said(reasoning="So.")]):
        ids = render(tokenizer, [*history, said(content="It is")], continue_final_message=True)
        assert ids == [*render(tokenizer, history), *tokenizer.encode_with_control(SAYS), *tokenizer.encode("It is")]


def test_a_conversation_may_begin_with_what_is_continued(tokenizer):
    text = tokenizer.decode(render(tokenizer, [{"role": "system", "content": "Be."}, said(content="I")], continue_final_message=True))
    assert text.endswith(f"Be.{NEXT}{SAYS}I")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=50)
@given(TEXT.filter(bool), st.none() | TEXT, st.sampled_from([None, "analysis", "commentary", "final"]))
def test_ids_are_openai_harmonys_up_to_the_end(reasoning, content, channel):
    messages = [QUESTION, said(reasoning=reasoning, content=content, channel=channel)]
    conversation = to_conversation(messages)
    whole = [i for message in conversation.messages[2:] for i in harmony_encoding().render(message)]
    before = harmony_encoding().render_conversation_for_completion(
        oh.Conversation.from_messages(conversation.messages[:2]), oh.Role.ASSISTANT
    )
    assert render(o200k(), messages, continue_final_message=True) == before[:-2] + whole[:-1]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([QUESTION], "the last message must be the assistant's; got the role user; append"),
        ([said(content="x"), {"role": "system", "content": "Be."}], "got the role system"),
        ([said(tool_calls=[CALL]), {"role": "tool", "tool_call_id": "1", "content": "x"}], "got the role tool"),
        (
            [QUESTION, said(content="Let me", tool_calls=[CALL])],
            r"must be text; got one with tool_calls \(messages\[1\]\); append the results",
        ),
        ([QUESTION, said()], "has neither content, reasoning nor tool_calls"),
        ([QUESTION, said(reasoning="", content=None)], "has neither content, reasoning nor tool_calls"),
        ([QUESTION, said(content=3)], "content must be a string"),
        ([], "messages is empty"),
    ],
)
def test_what_cannot_be_continued(tokenizer, messages, says):
    with pytest.raises(ValueError, match=says):
        render(tokenizer, messages, continue_final_message=True)


@pytest.mark.parametrize("wanted", ["yes", None, 1, 0, []])
def test_it_is_wanted_or_not(wanted):
    with pytest.raises(ValueError, match="continue_final_message must be True or False; got"):
        render(o200k(), [QUESTION, said(content="x")], continue_final_message=wanted)


# Reading


def halves(text):
    """A turn in short, cut once in each of its bodies: how it was begun, and how it goes on."""
    at = text.index("M!") + 2
    return [
        (text[:cut], text[cut:]) for cut in range(at, len(text)) if text[at:cut].find("E!") < 0 and "!" not in text[max(at, cut - 1) : cut]
    ]


@pytest.mark.parametrize(
    "turn", ["C!analysisM!Hm.E!S!assistantC!finalM!fortyR!", "C!finalM!fortyR!", "C!commentaryM!SeeE!S!assistantC!finalM!xR!"]
)
def test_a_turn_in_two_parts_is_the_turn(tokenizer, turn):
    whole = parse(tokenizer, written(tokenizer, turn))
    channel = whole.messages[0].channel
    for begun, rest in halves(turn):
        text = begun.partition("M!")[2]
        if rest[:1] == "!" or text.endswith(("E", "R")):
            continue
        turn_begun = continued([QUESTION, said(channel=channel, content=text)])
        parsed = parse(tokenizer, written(tokenizer, rest), channel=channel)
        assert parsed.messages[0].text == whole.messages[0].text[len(text) :] and parsed.messages[0].channel == channel
        assert parsed.messages[0].end == whole.messages[0].end and not parsed.malformed and not parsed.incomplete
        assert turn_begun.chat_messages(parsed) == whole.to_chat_messages()


def test_the_reasoning_before_stands_in_the_messages(tokenizer):
    turn = continued([QUESTION, said(reasoning="Warm?", content="It is")])
    parsed = parse(tokenizer, written(tokenizer, " red.R!"), channel="final")
    assert (parsed.final, parsed.reasoning, parsed.spans) == (" red.", "", ((0, len(parsed.tokens)),))
    assert turn.chat_messages(parsed) == [said(reasoning="Warm?", content="It is red.")]


def test_nothing_new_leaves_what_was_begun(tokenizer):
    for last in (said(content="It is"), said(reasoning="Hm", content="It is"), said(reasoning="Hm")):
        turn = continued([QUESTION, last])
        parsed = parse(tokenizer, [], channel=turn.channel)
        assert turn.chat_messages(parsed) == [last] and parsed.incomplete and parsed.messages[0].text == ""
        ended = parse(tokenizer, written(tokenizer, "R!"), channel="final")
        assert not ended.incomplete and ended.messages[0].span == (0, 1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([*TURNS, "Hi", " ", "R!", "E!", "S!", "C!", "M!", "A!", "é", "assistant"]), max_size=6).map("".join),
    st.sampled_from(["analysis", "commentary", "final"]),
    st.sampled_from([o200k, small]),
)
def test_no_token_is_lost_and_the_turn_can_be_continued_again(stream, channel, vocabulary):
    tokenizer = vocabulary()
    tokens = written(tokenizer, stream)
    parser = StreamParser(tokenizer, channel=channel)
    deltas = [delta for token in tokens for delta in parser.push(token)] + parser.finish()
    parsed = parser.result()
    assert parsed == parse(tokenizer, tokens, channel=channel)
    assert [i for a, b in parsed.spans for i in tokens[a:b]] == tokens
    assert "".join(d.text for d in deltas if d.message == 0) == parsed.messages[0].text and parsed.messages[0].channel == channel
    history = [QUESTION, *continued([QUESTION, said(channel=channel, content="Well,")]).chat_messages(parsed)]
    if not history[-1].get("tool_calls"):
        ids = render(tokenizer, history, continue_final_message=True)
        last = history[-1].get("content") or history[-1].get("reasoning")
        assert tokenizer.decode(ids).endswith(f"<|message|>{last}")
    assert "Well," in tokenizer.decode(render(tokenizer, history)) or channel == "analysis"
