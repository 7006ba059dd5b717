"""Marks in a conversation: with them openai_harmony's own ids come out, whatever they stand for."""

from hypothesis import given, settings
from hypothesis import strategies as st
import openai_harmony as oh
from small_vocabulary import small_vocabulary as small

from gptoss_jax.harmony import render
from gptoss_jax.harmony.conversation import to_conversation
from gptoss_jax.harmony.marks import LONGEST, Marks
from gptoss_jax.harmony.render import bridge, ids_of
from gptoss_jax.tokenizer import harmony_encoding, o200k

WORDS = ["a", "Hi", "it's", " ", "\n", "\t", "//", "\ue000", "0", "1.", "type f = () => any;", "<|end|>", "=", "é", "日本", "\ud83d"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=8).map("".join) | st.text(max_size=30)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "reasoning", "call", "tool"])
BEGIN, END = "namespace functions {\n\n", "\n\n} // namespace functions"


@st.composite
def conversations(draw):
    """Messages, and the options of `to_conversation`."""
    messages = []
    for role in draw(st.lists(ROLES, min_size=1, max_size=6)):
        text = draw(TEXT)
        said = {
            "reasoning": {"role": "assistant", "reasoning": "Hm." + text, "content": text},
            "call": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]},
            "tool": {"role": "tool", "name": "f", "content": text},
        }
        messages.append(said.get(role, {"role": role, "content": text}))
    functions = [{"name": name, "description": draw(TEXT)} for name in draw(st.lists(st.sampled_from(["f", "g-1", "H_2"]), unique=True))]
    options = {name: draw(st.none() | TEXT) for name in ("instructions", "model_identity", "knowledge_cutoff")}
    return to_conversation(messages, tools=functions or None, **options)


def direct(conversation: oh.Conversation) -> list[int]:
    return harmony_encoding().render_conversation_for_completion(conversation, oh.Role.ASSISTANT)


def declared(conversation: oh.Conversation) -> dict[str, str]:
    """What openai_harmony writes for each function."""
    out = {}
    for content in (content for message in conversation.messages for content in message.content):
        for tool in [tool for space in (getattr(content, "tools", None) or {}).values() for tool in space.tools]:
            alone = oh.DeveloperContent().with_function_tools([tool])
            text = harmony_encoding().decode(harmony_encoding().render(oh.Message.from_role_and_content(oh.Role.DEVELOPER, alone)))
            out[tool.name] = text[text.index(BEGIN) + len(BEGIN) : text.rindex(END)]
    return out


@settings(deadline=None, max_examples=80)
@given(conversations(), st.sampled_from([0, 3, LONGEST]), st.booleans())
def test_ids_are_openai_harmonys_own(conversation, longest, declare):
    marks = Marks(conversation, declared(conversation) if declare else None, longest=longest)
    expected = direct(conversation)
    assert ids_of(o200k(), marks) == expected
    assert ids_of(small(), marks) == bridge(expected, small())


@settings(deadline=None, max_examples=40)
@given(conversations())
def test_short_conversations_hold_no_marks(conversation):
    assert Marks(conversation).conversation == conversation


def test_what_marks_stand_for_is_not_read_for_marks():
    texts = ["".join(f"\ue000{i}.{j}. " for i in range(60) for j in range(60)), "\ue0000.1." * 300, "\ue000" * 5_000]
    messages = [{"role": "user", "content": text} for text in texts]
    assert o200k().decode(render(o200k(), messages)).count("<|start|>user<|message|>\ue000") == 3
    conversation = to_conversation(messages)
    assert all(len(content.text) < 12 for message in Marks(conversation).conversation.messages[1:] for content in message.content)
    text = o200k().decode(ids_of(o200k(), Marks(conversation)))
    assert all(f"<|message|>{one}<|end|>" in text for one in texts)


def test_declarations_take_the_places_of_functions():
    tools = [{"name": "f", "description": "F."}, {"name": "g", "parameters": {"properties": {"x": {"type": "string"}}}}]
    conversation = to_conversation([{"role": "user", "content": "Hi"}], tools=tools, instructions="// \ue0000.0.\ntype f = () => any;")
    text = o200k().decode(ids_of(o200k(), Marks(conversation, {"f": "// One\n// two\ntype f = 1;", "g": "type g = <|end|>\\1;"})))
    assert f"{BEGIN}// One\n// two\ntype f = 1;\n\ntype g = <|end|>\\1;{END}<|end|>" in text
    assert "# Instructions\n\n// \ue0000.0.\ntype f = () => any;\n\n# Tools" in text
