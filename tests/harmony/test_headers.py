"""Headers as models write them: calls, answers and reasoning are found in them, and what was wrong is marked."""

from as_written import headers, read, written
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.harmony import parse, render
from gptoss_jax.harmony.header import answers, called, read_header
from gptoss_jax.tokenizer import o200k

WELL_FORMED_CALLS = [
    'C!commentary to=functions.f K!jsonM!{"x": 1}A!',
    'C!commentary to=functions.fK!jsonM!{"x": 1}A!',
    'C!commentary to=functions.f jsonM!{"x": 1}A!',
    'C!commentary to=functions.fM!{"x": 1}A!',
    ' to=functions.fC!commentary K!jsonM!{"x": 1}A!',
    ' to=functions.fC!commentary jsonM!{"x": 1}A!',
    'C!analysis to=functions.f codeM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!assistant to=functions.fC!commentary K!jsonM!{"x": 1}A!',
]
CALLS = [
    # the recipient's place
    'C!commentary K!json to=functions.fM!{"x": 1}A!',
    'C!commentary K! to=functions.f jsonM!{"x": 1}A!',
    'C! to=functions.f commentary K!jsonM!{"x": 1}A!',
    'C!to=functions.fM!{"x": 1}A!',
    ' to=functions.fM!{"x": 1}A!',
    'K!json to=functions.fM!{"x": 1}A!',
    'C!final to=functions.f K!jsonM!{"x": 1}R!',
    'C!analysis to=functions.fM!{"x": 1}E!',
    'C!analysisM!Hm.E!S! to=functions.fC!commentaryM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!assistantto=functions.fC!commentaryM!{"x": 1}A!',
    'C!analysisM!Hm.E! to=functions.fC!commentaryM!{"x": 1}A!',
    'C!analysisM!Hm.E!assistant to=functions.fC!commentaryM!{"x": 1}A!',
    # twice
    ' to=functions.fC!commentary to=functions.f K!jsonM!{"x": 1}A!',
    'C!commentary to=functions.fC!commentaryM!{"x": 1}A!',
    'C!commentary to=assistantC!commentary to=functions.fM!{"x": 1}A!',
    'C!commentary to=functions.f to=functions.g K!jsonM!{"x": 1}A!',
    'C!commentary to=functions.functions.f K!jsonM!{"x": 1}A!',
    'C!commentary to=functions.functions.functions.fM!{"x": 1}A!',
    'assistantC!commentary to=functions.fM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!assistantassistant to=functions.fC!commentaryM!{"x": 1}A!',
    # its spelling
    'C!commentary to =functions.f K!jsonM!{"x": 1}A!',
    'C!commentary to= functions.fM!{"x": 1}A!',
    'C!commentary to = functions.f jsonM!{"x": 1}A!',
    'C!commentary to="functions.f" K!jsonM!{"x": 1}A!',
    "C!commentary to='functions.f'M!{\"x\": 1}A!",
    'C!commentary to=`functions.f`M!{"x": 1}A!',
    'C!commentary to=“functions.f”M!{"x": 1}A!',
    'C!commentary to=[functions.f]M!{"x": 1}A!',
    'C!commentary to=<functions.f>M!{"x": 1}A!',
    'C!commentary to=(functions.f) jsonM!{"x": 1}A!',
    'C!commentary to=functions.f,M!{"x": 1}A!',
    'C!commentary to=functions.f? jsonM!{"x": 1}A!',
    'C!commentary to=functions.f:M!{"x": 1}A!',
    'C!commentary to=functions.f()M!{"x": 1}A!',
    'C!commentary to=functions/fM!{"x": 1}A!',
    'C!commentary to=functions fM!{"x": 1}A!',
    'C!commentary to=functions. fM!{"x": 1}A!',
    'C!commentary TO=Functions.fM!{"x": 1}A!',
    'C!commentary to=fM!{"x": 1}A!',
    'C!commentary functions.fM!{"x": 1}A!',
    'C!functions.fM!{"x": 1}A!',
    'C!commentary K!functions.fM!{"x": 1}A!',
    'C!commentary.functions.fM!{"x": 1}A!',
    # glued
    'C!commentaryto=functions.f K!jsonM!{"x": 1}A!',
    'C!commentaryjson to=functions.fM!{"x": 1}A!',
    'C!commentary jsonto=functions.fM!{"x": 1}A!',
    'C!commentary? to=functions.fM!{"x": 1}A!',
    'C!COMMENTARY to=functions.fM!{"x": 1}A!',
    'C!comment to=functions.fM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!assistantcommentary to=functions.fM!{"x": 1}A!',
    # of another author
    'C!analysisM!Hm.E!S!functions.f to=functions.fC!commentaryM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!functions.fC!commentary K!jsonM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!bash to=functions.fC!commentaryM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!assistantfunctions.fC!commentaryM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!user to=functions.fC!commentaryM!{"x": 1}A!',
    'C!analysisM!Hm.E!S!tool to=functions.fC!commentaryM!{"x": 1}A!',
    # without <|message|>
    'C!commentary to=functions.f {"x": 1}A!',
    'C!commentary to=functions.f{"x": 1}A!',
    'C!commentary to=functions.f K!json{"x": 1}A!',
    'C!commentaryto=functions.f json{"x": 1}A!',
    'C!commentary to="functions.functions.f" {"x": 1}A!',
    # its end
    'C!commentary to=functions.f K!jsonM!{"x": 1}R!',
    'C!commentary to=functions.f K!jsonM!{"x": 1}E!',
    'C!commentary to=functions.f K!jsonM!M!{"x": 1}A!',
]


@pytest.mark.parametrize("stream", WELL_FORMED_CALLS + CALLS)
def test_a_call_is_found_and_can_be_answered(small, stream):
    parsed = read(small, stream)
    (call,) = parsed.tool_calls
    assert (call.name, call.parsed) == ("f", {"x": 1})
    assert parsed.malformed == (stream in CALLS), parsed.problems
    assert parsed.final == parsed.commentary == "" and parsed.reasoning in ("", "Hm.")
    messages = [{"role": "user", "content": "?"}, *parsed.to_chat_messages(), {"role": "tool", "tool_call_id": "call_0", "content": "ok"}]
    again = parse(small, render(small, messages), role=None)
    assert again.tool_calls == (call,) and again.messages[-1].name == "functions.f" and not again.malformed


ANSWERS = [
    "C!finalM!fortyR!",
    "C!final K!jsonM!fortyR!",
    "C!final to=userM!fortyR!",
    "C!finalM!forty",
]
NEARLY_ANSWERS = [
    "C!analysisM!Hm.E!S!assistantassistantC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!assistant assistantC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!assistantassistantassistantC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!AssistantC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!assistnatC!finalM!fortyR!",
    'C!analysisM!Hm.E!S!"assistant"C!finalM!fortyR!',
    "C!analysisM!Hm.E!S!assistantfinalM!fortyR!",
    "C!analysisM!Hm.E!S!assistant finalM!fortyR!",
    "C!analysisM!Hm.E!S!finalM!fortyR!",
    "C!analysisM!Hm.E!S!finalC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!robotC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!robotM!fortyR!",
    "C!analysisM!Hm.E!S!C!finalM!fortyR!",
    "C!analysisM!Hm.E!S!M!fortyR!",
    "C!analysisM!Hm.E!S!functions.fC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!userC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!developerC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!assistant:finalM!fortyR!",
    "C!analysisM!Hm.E!S!<|assistant|>C!finalM!fortyR!",
    "C!analysisM!Hm.E!assistantC!finalM!fortyR!",
    "C!analysisM!Hm.E!C!finalM!fortyR!",
    "C!analysisM!Hm.E!M!fortyR!",
    "C!analysisM!Hm.E!fortyR!",
    "C!analysisM!Hm.E!assistantM!fortyR!",
    "C!analysisM!Hm.E!S!fortyR!",
    "C!analysisM!Hm.C!finalM!fortyR!",
    "C!analysisM!Hm.S!assistantC!finalM!fortyR!",
    "C!analysisM!Hm.E!S!S!assistantC!finalM!fortyR!",
    "assistantC!finalM!fortyR!",
    "assistantfinalM!fortyR!",
    "finalM!fortyR!",
    "M!fortyR!",
    "C!M!fortyR!",
    "C!finalM!M!fortyR!",
    "C!FINALM!fortyR!",
    "C!Final M!fortyR!",
    "C!final.M!fortyR!",
    "C!final?M!fortyR!",
    "C!––finalM!fortyR!",
    'C!"final"M!fortyR!',
    "C!fnialM!fortyR!",
    "C!finaljsonM!fortyR!",
    "C!final |jsonM!fortyR!",
    "C!final answerM!fortyR!",
    "C!finalanswerM!fortyR!",
    "C!final <|json|>M!fortyR!",
    "C!finalfinalM!fortyR!",
    "C!finalC!finalM!fortyR!",
    "C!analysisC!finalM!fortyR!",
    "C!finalC!analysisM!fortyR!",
    "C!analysisfinalM!fortyR!",
    "C!final to=finalM!fortyR!",
    "C!to=finalM!fortyR!",
    "C!K!finalM!fortyR!",
    "K!finalM!fortyR!",
    "C!assistant finalM!fortyR!",
    "C!assistantfinalM!fortyR!",
    "C!replyM!fortyR!",
    "C!finalfortyR!".replace("forty", "Forty"),
    "C!final fortyR!",
    "C!final: fortyR!",
    "fortyR!",
    "assistantfinal fortyR!",
    "C!finalM!fortyA!",
    "C!finalM!forty<|endoftext|>",
]


@pytest.mark.parametrize("stream", ANSWERS + NEARLY_ANSWERS)
def test_the_answer_is_found(small, stream):
    parsed = read(small, stream)
    assert parsed.final.strip().lower() == "forty"
    assert not parsed.tool_calls and parsed.reasoning in ("", "Hm.")
    assert parsed.malformed == (stream in NEARLY_ANSWERS), parsed.problems
    assert [m["content"] for m in parsed.to_chat_messages() if "content" in m] == [parsed.final]


@pytest.mark.parametrize(
    ("stream", "reasoning", "commentary", "final"),
    [
        ("C!analysiscodeM!HmE!S!assistantC!finalM!fortyR!", "Hm", "", "forty"),
        ("C!ANALYSISM!HmE!S!assistantC!finalM!fortyR!", "Hm", "", "forty"),
        ("C!analysis?M!HmE!S!assistantC!finalM!fortyR!", "Hm", "", "forty"),
        ("We must refuse. So refuse.E!S!assistantC!finalM!fortyR!", "We must refuse. So refuse.", "", "forty"),
        ("C!We need to thinkE!S!assistantC!finalM!fortyR!", "We need to think", "", "forty"),
        ("C!??E!S!assistantC!finalM!fortyR!", "??", "", "forty"),
        ("C!commentary?commentary?E!S!assistantC!finalM!fortyR!", "", "commentary?", "forty"),
        ("C!commentary to=assistantM!Look it up.E!S!assistantC!finalM!fortyR!", "", "Look it up.", "forty"),
        ("C!commentaryjsonM!HmE!S!assistantC!finalM!fortyR!", "", "Hm", "forty"),
        ("C!––commentaryM!HmE!S!assistantC!finalM!fortyR!", "", "Hm", "forty"),
        ('C!commentaryM!{"x": 1}A!', "", '{"x": 1}', ""),
        ('C!commentary K!jsonM!{"x": 1}A!', "", '{"x": 1}', ""),
        ('{"x": 1}A!', "", '{"x": 1}', ""),
        ("C!analysisM!HmR!", "Hm", "", ""),
        ("C!commentaryM!fortyR!", "", "forty", ""),
    ],
)
def test_what_is_neither_call_nor_answer(small, stream, reasoning, commentary, final):
    parsed = read(small, stream)
    assert (parsed.reasoning, parsed.commentary, parsed.final) == (reasoning, commentary, final)
    assert not parsed.tool_calls and parsed.malformed == ("to=assistant" not in stream), parsed.problems


def test_a_call_of_no_tool_is_said_to_be_one(small):
    parsed = read(small, 'C!commentaryM!{"city": "Lima"}A!')
    assert any("names no tool" in problem for problem in parsed.problems)
    assert parsed.to_chat_messages() == [{"role": "assistant", "channel": "commentary", "content": '{"city": "Lima"}'}]


@pytest.mark.parametrize(
    "stream", ["S!functions.f to=assistantC!commentaryM!okE!", "S!functions.fC!commentaryM!okE!", "S!python to=assistantC!analysisM!okE!"]
)
def test_a_tools_result_is_no_call(small, stream):
    parsed = parse(small, written(small, stream), role=None)
    (result,) = parsed.messages
    assert (result.role, result.text) == ("tool", "ok") and not result.tool_call and not result.answers and not parsed.malformed


def test_a_recipient_that_goes_on_for_ever_is_none(small):
    parsed = read(small, f"C!commentary to=functions.{'x' * 1_000} K!jsonM!{{}}A!")
    assert not parsed.tool_calls and parsed.commentary == "{}" and parsed.malformed


def test_half_a_recipient_calls_nobody(small):
    parsed = read(small, "C!commentary to=functions.get_wea")
    assert not parsed.tool_calls and parsed.incomplete and not parsed.malformed


@settings(deadline=None, max_examples=100)
@given(headers(), st.sampled_from(["", "C!analysisM!HmE!S!", "C!analysisM!HmE!"]), st.sampled_from(["M!", ""]), st.sampled_from("EAR"))
def test_what_any_header_says_is_a_call_an_answer_or_neither(header, before, message, end):
    tokenizer = small_vocabulary()
    parsed = read(tokenizer, f"{before}{header}{message}{{}}{end}!")
    for one in parsed.messages:
        assert one.answers + (one.tool_call is not None) <= 1
        assert one.channel is None or one.channel == one.channel.strip() != ""
    text = "".join([parsed.final, parsed.commentary, parsed.reasoning, *(call.arguments for call in parsed.tool_calls)])
    others = "".join(m.text for m in parsed.messages if m.role != "assistant")
    assert "{}" in text + others
    history = [{"role": "user", "content": "?"}, *parsed.to_chat_messages()]
    again = parse(tokenizer, render(tokenizer, history), role=None)
    assert again.tool_calls == parsed.tool_calls and not again.malformed


@pytest.mark.parametrize(
    "unit", ["to=", "to =", "functions.", "final", "to=functions.", "a", " ", "–", '"', "to", "f ", "to=functions ", "<|", "\U00010348"]
)
def test_a_header_as_long_as_the_context_is_read_at_once(unit):
    for text in (unit * 5_000, f"to={unit * 5_000}", f"final{unit * 5_000}x"):
        for end in ("<|message|>", "<|end|>", None):
            read_header([("", text), ("<|channel|>", text), ("<|constrain|>", text)], None, end=end)


def test_both_vocabularies_read_alike():
    for stream in CALLS + NEARLY_ANSWERS:
        one, other = (parse(t, written(t, stream)) for t in (o200k(), small_vocabulary()))
        assert [(m.role, m.channel, m.recipient, m.text) for m in one.messages] == [
            (m.role, m.channel, m.recipient, m.text) for m in other.messages
        ]


def test_who_is_called_and_what_answers():
    assert called("assistant", "functions.f") == called("assistant", "f") == "f" and called("user", "functions.f") is None
    assert [called("assistant", one) for one in (None, "user", "all", "assistant")] == [None] * 4
    assert answers("assistant", "final", None) and answers("assistant", None, "user") and answers("assistant", "reply", None)
    assert (
        not answers("assistant", "final", "functions.f") and not answers("assistant", "analysis", None) and not answers("user", None, None)
    )
