"""Parsing over arbitrary tokens never raises and never loses one; over well-formed streams it agrees with openai_harmony."""

from as_written import add_up
from hypothesis import given, settings
from hypothesis import strategies as st
import openai_harmony as oh
from small_vocabulary import small_vocabulary as small

from gptoss_jax.harmony import StreamParser, least_tokens, parse, render
from gptoss_jax.harmony.render import bridge
from gptoss_jax.tokenizer import CONTROL, harmony_encoding, o200k

VOCABULARIES = st.sampled_from([o200k, small])
WORDS = ["assistant", "user", "functions.f", "analysis", "commentary", "final", " to=functions.f", " json", "{}", "Hi", " ", "to="]


@st.composite
def streams(draw):
    """A vocabulary and any tokens of it: control tokens, words of headers, halves of characters, ids from in- and outside."""
    tokenizer = draw(VOCABULARIES)()
    words = st.sampled_from(WORDS).map(tokenizer.encode)
    control = st.sampled_from(CONTROL).map(lambda name: [tokenizer.special[name]])
    known = st.integers(0, tokenizer.vocab_size - 1).map(lambda i: [i])
    foreign = st.sampled_from([-1, tokenizer.vocab_size, 2**64]).map(lambda i: [i])
    half = st.just(tokenizer.encode("\U00010348")[:1])
    opening = st.just(tokenizer.encode_with_control("<|start|>assistant<|channel|>final<|message|>"))
    parts = draw(st.lists(st.one_of(control, control, words, words, known, half, foreign, opening), max_size=40))
    return tokenizer, [i for part in parts for i in part]


def check_content(tokenizer, tokens, message, deltas):
    """Each delta has the tokens whose text is whole with it: all that were read but one that ends with half a character."""
    spelled = lambda end: b"".join(
        b"" if tokenizer.control_name(i) else tokenizer.token_bytes(i) or b"\xff" for i in tokens[message.content[0] : end]
    )
    said = ""
    for delta in deltas[:-1]:
        said += delta.text
        whole = spelled(delta.content[1]).decode(errors="replace")
        assert said.startswith(whole) and len(spelled(delta.content[1] + 1).decode(errors="replace")) >= len(said)


@settings(deadline=None, max_examples=500)
@given(streams(), st.sampled_from(["assistant", None]))
def test_no_token_is_lost_and_the_deltas_add_up(stream, role):
    tokenizer, tokens = stream
    parser = StreamParser(tokenizer, role=role)
    deltas = [delta for token in tokens for delta in parser.push(token)] + parser.finish()
    parsed = parser.result()

    assert parsed == parse(tokenizer, tokens, role=role)
    assert [i for a, b in parsed.spans for i in tokens[a:b]] == tokens == list(parsed.tokens)
    assert all(a < b for a, b in parsed.spans)
    add_up(deltas, parsed)
    for index, message in enumerate(parsed.messages):
        span = tokens[message.span[0] : message.span[1]]
        if tokenizer.special["<|message|>"] in span:
            content = span[span.index(tokenizer.special["<|message|>"]) :]
            spelled = [b"" if tokenizer.control_name(i) else tokenizer.token_bytes(i) or b"\xff" for i in content]
            assert message.text == b"".join(spelled).decode(errors="replace")
            check_content(tokenizer, tokens, message, [delta for delta in deltas if delta.message == index])
            assert tokens[slice(*message.content)] == content[1 : len(content) - (message.end is not None)]
    assert all(name not in message.text for name in CONTROL for message in parsed.messages)
    assert parsed.malformed or not parsed.junk or parsed.incomplete


@settings(deadline=None, max_examples=200)
@given(streams())
def test_whatever_was_answered_can_stand_in_the_history(stream):
    tokenizer, tokens = stream
    parsed = parse(tokenizer, tokens)
    history = parsed.to_chat_messages()
    again = parse(tokenizer, render(tokenizer, [{"role": "user", "content": "Hi"}, *history]), role=None)
    said = [m for m in parsed.messages if m.role == "assistant" and (m.text or m.tool_call)]
    heard = [m for m in again.messages if m.role == "assistant"]
    kept = [m for m in said if m.channel != "analysis" or m.tool_call]  # analysis may go, as openai_harmony has it
    assert [m.text for m in heard if m.channel != "analysis"] == [m.text for m in kept]
    assert not again.malformed


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def conversations(draw):
    """Well-formed openai_harmony messages, an assistant's first."""
    messages = []
    for i in range(draw(st.integers(1, 5))):
        role = draw(st.sampled_from(["assistant"] if i == 0 else ["assistant", "user", "developer", "tool"]))
        message = oh.Message.from_author_and_content(
            oh.Author(role=oh.Role(role), name="functions.f" if role == "tool" else None), draw(TEXT)
        )
        if role == "tool":
            message = message.with_channel("commentary").with_recipient("assistant")
        elif role == "assistant":
            message = message.with_channel(draw(st.sampled_from(["analysis", "commentary", "final"])))
            if draw(st.booleans()):
                message = message.with_recipient(draw(st.sampled_from(["functions.get_weather", "python"])))
                kind = draw(st.sampled_from([None, "json", "code"]))  # without a recipient openai_harmony misreads a type
                message = message.with_content_type(kind) if kind else message
        messages.append(message)
    return messages


def fields(message: oh.Message) -> tuple:
    kind = message.content_type and message.content_type.removeprefix("<|constrain|>")
    return message.author.role.value, message.author.name, message.channel, message.recipient, kind, message.content[0].text


def ours(parsed) -> list[tuple]:
    return [(m.role, m.name, m.channel, m.recipient, m.content_type, m.text) for m in parsed.messages]


@settings(deadline=None, max_examples=300)
@given(conversations(), st.booleans())
def test_agrees_with_openai_harmony_on_well_formed_streams(messages, inside_a_turn):
    encoding = harmony_encoding()
    tokens = [i for message in messages for i in encoding.render(message)]
    role = oh.Role.ASSISTANT if inside_a_turn else None
    if inside_a_turn:
        tokens = tokens[2:]  # the prompt ended with <|start|>assistant
    expected = [fields(message) for message in encoding.parse_messages_from_completion_tokens(tokens, role)]
    assert expected == [fields(message) for message in messages]
    parsed = parse(o200k(), tokens, role=role and role.value)
    assert ours(parsed) == expected and not parsed.malformed and not parsed.junk
    bridged = parse(small(), bridge(tokens, small()), role=role and role.value)
    assert ours(bridged) == expected and not bridged.malformed and not bridged.junk


@settings(deadline=None, max_examples=300)
@given(conversations(), st.data())
def test_a_cut_loses_nothing_before_it_and_is_no_malformation(messages, data):
    tokens = [i for message in messages for i in harmony_encoding().render(message)]
    cut = data.draw(st.integers(0, len(tokens)))
    whole, part = parse(o200k(), tokens, role=None), parse(o200k(), tokens[:cut], role=None)
    ended = sum(message.span[1] <= cut for message in whole.messages)
    assert part.messages[:ended] == whole.messages[:ended] and len(part.messages) - ended in (0, 1)
    assert not part.malformed and (part.incomplete or whole.messages[ended - 1].span[1] == cut)
    for broken in part.messages[ended:]:
        same = whole.messages[ended]
        assert (broken.role, broken.end) == (same.role, None)
        if o200k().special["<|message|>"] in tokens[broken.span[0] : cut]:
            assert ours(part)[ended][:5] == ours(whole)[ended][:5] and same.text.startswith(broken.text.rstrip("\ufffd"))


_CALL = {"type": "function", "function": {"name": "f", "arguments": ""}}
_SAID = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.sampled_from(["", [], "a"])},
    optional={
        "reasoning": st.sampled_from(["", "a"]),
        "channel": st.sampled_from(["analysis", "commentary", "final"]),
        "tool_calls": st.lists(st.just(_CALL), max_size=2),
    },
)
_OTHERS = [{"role": role, "content": ""} for role in ("user", "system", "developer")]
_OTHERS += [{"role": "tool", "name": "f", "content": ""}, {"role": "assistant", "reasoning": "a"}]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(_SAID, st.sampled_from(_OTHERS)), min_size=1, max_size=8), st.integers(0, 9), VOCABULARIES)
def test_no_prompt_is_shorter_than_what_is_said_before_it_is_rendered(messages, functions, vocabulary):
    tools = [{"name": f"f{i}"} for i in range(functions)]
    assert least_tokens(messages, tools) <= len(render(vocabulary(), messages, tools=tools))


def test_a_prompt_of_many_messages_is_long_before_it_is_rendered():
    for message in _OTHERS:
        assert least_tokens([{"role": "user", "content": ""}, *[message] * 1000]) >= 4000
    assert least_tokens([{"role": "assistant", "tool_calls": [_CALL] * 1000}]) >= 4000
    assert least_tokens("many") == least_tokens([None, {}, {"role": [1]}]) == 0
