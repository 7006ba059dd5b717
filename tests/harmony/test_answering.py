"""Calls that a model made, whatever it called: a history can hold them, and their results."""

from as_written import read
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.harmony import parse, render


def test_a_name_of_the_history_may_be_written_with_its_namespace(small):
    for name in ("f", "functions.f", "functions.functions.f"):
        call = {"id": "1", "function": {"name": name, "arguments": "NaN"}}
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]
        again = parse(small, render(small, [*messages, {"role": "tool", "name": name, "content": "ok"}]), role=None)
        assert [(one.name, one.arguments) for one in again.tool_calls] == [("f", "NaN")] and again.messages[-1].name == "functions.f"


NAMES = [
    "browser.search",
    "python",
    "container.exec",
    "a.b",
    "a:b",
    "mcp.server/tool",
    "天気",
    "x" * 256,
    "-",
    "f_",
    "मौसम",
    "nai\u0308ve",
    "get$weather",
    "f#1",
    "f~",
    "\\n",
    "functions",
    "assistant",
]


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_what_is_no_function_of_ours_can_be_answered_too(small, name):
    parsed = read(small, f"C!commentary to={'functions.' if name == 'assistant' else ''}{name} K!jsonM!{{}}A!")
    (call,) = parsed.tool_calls
    assert call.name == name
    history = [{"role": "user", "content": "?"}, *parsed.to_chat_messages()]
    for result in ({"tool_call_id": "call_0"}, {"name": call.name}):
        again = parse(small, render(small, [*history, {"role": "tool", **result, "content": "ok"}]), role=None)
        assert again.tool_calls == (call,) and not again.malformed
        assert (again.messages[-1].role, again.messages[-1].text) == ("tool", "ok")
        assert again.messages[-1].name == again.messages[-2].recipient


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: "<|" not in text))
def test_whatever_name_a_model_invents_can_be_answered(text):
    tokenizer = small_vocabulary()
    parsed = read(tokenizer, f"C!commentary to=functions.{text} K!jsonM!{{}}A!")
    for call in parsed.tool_calls:
        result = {"role": "tool", "tool_call_id": "call_0", "content": "ok"}
        history = [{"role": "user", "content": "?"}, *parsed.to_chat_messages(), result]
        again = parse(tokenizer, render(tokenizer, history), role=None)
        assert again.tool_calls == (call,) and again.messages[-1].name == again.messages[-2].recipient and not again.malformed
