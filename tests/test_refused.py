"""What an LLM refuses: prompts, turns, scores and replays that are none, each in one sentence before anything runs."""

import dataclasses

from byte_tokenizer import ByteTokenizer
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj


@pytest.fixture(scope="module")
def llm():
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=ByteTokenizer()), slots=4, context=64, chunk=16)


@pytest.mark.parametrize(
    "prompts, sampling, message",
    [
        ([], None, "there must be a prompt; got an empty list"),
        ("", None, "a prompt needs at least one token; got none"),
        ([[]], None, "a prompt needs at least one token; got none"),
        (["a", ""], None, "a prompt needs at least one token; got none"),
        (5, None, "a prompt must be a string or a list of token ids; got int"),
        (b"bytes", None, "a prompt must be a string or a list of token ids; got bytes"),
        ([b"bytes"], None, "a prompt must be a string or a list of token ids; got bytes"),
        (np.array(5), None, "a prompt must be a string or a list of token ids; got ndarray"),
        ([1.5, 2.5], None, "a prompt must be a string or a list of token ids; got float"),
        ([None], None, "a prompt must be a string or a list of token ids; got NoneType"),
        ([True], None, "a prompt must be a string or a list of token ids; got bool"),
        ([[True, 5]], None, "flat sequence of integers"),
        (jnp.array(5), None, "a prompt must be a string or a list of token ids; got ArrayImpl without dimensions"),
        (jnp.array([1.5]), None, "flat sequence of integers"),
        (jnp.array([True]), None, "flat sequence of integers"),
        (jnp.array([-1]), None, r"token ids must lie in 0 \.\.\. 319; got -1"),
        (jnp.zeros((0,), int), None, "a prompt needs at least one token; got none"),
        (np.zeros((0, 5), int), None, "there must be a prompt; got an empty list"),
        (np.zeros((2, 2, 2), int), None, "an array of prompts has one dimension or two; got 3"),
        pytest.param((i for i in (1, 2)), None, "a prompt must be a string or a list of token ids; got generator", id="a generator"),
        pytest.param(memoryview(b"ab"), None, "a prompt must be a string or a list of token ids; got memoryview", id="a view of bytes"),
        ({1, 2}, None, "a prompt must be a string or a list of token ids; got set"),
        ([[1.5]], None, "flat sequence of integers"),
        (np.array([1.5]), None, "flat sequence of integers"),
        ([320], None, r"token ids must lie in 0 \.\.\. 319; got 320"),
        (range(10**12), None, "prompt has 1,000,000,000,000 tokens but context is 64; shorten the prompt"),
        ([2**63, -1], None, r"token ids must lie in 0 \.\.\. 319; got 9,223,372,036,854,775,808"),
        ("x" * 64, None, "prompt has 64 tokens but context is 64; pass context=128 or shorten the prompt"),
        ("x", {"temperature": 0}, "sampling must be a Sampling; got "),
        ("x", 0.5, "sampling must be a Sampling; got float"),
        (["x", "y"], [gj.Sampling()], "one sampling for each prompt; got 1 for 2"),
    ],
    ids=str,
)
def test_bad_prompts_are_refused(llm, prompts, sampling, message):
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts, sampling)


def test_a_conversation_of_too_many_messages_is_not_rendered(llm, monkeypatch):
    monkeypatch.setattr(gj.LLM, "render", lambda *_, **__: pytest.fail("it was"))
    with pytest.raises(ValueError, match="^prompt has at least 120 tokens but context is 64; pass context=128 or shorten the prompt"):
        llm.chat([{"role": "user", "content": "a"}] * 30)
    with pytest.raises(ValueError, match="^prompt has at least 124 tokens but context is 64"):
        llm.chat("a", tools=[{"name": f"f{i}"} for i in range(31)])
    with pytest.raises(ValueError, match="^messages must be at most 64, as many as the context has tokens; got 100; drop some"):
        llm.chat([{"role": "system", "content": ""}] * 100)


@pytest.mark.parametrize("ask", ["chat", "stream"])
@pytest.mark.parametrize(
    "messages, options, message",
    [
        ([], {}, "message"),
        ([{"role": "wizard", "content": "x"}], {}, "role"),
        ("x", {"reasoning_effort": "extreme"}, "effort"),
        ("x", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}]}, "schema"),
        ("x", {"sampling": 3}, "sampling must be a Sampling"),
        ("x", {}, "tokens but context is 64"),
    ],
    ids=str,
)
def test_bad_turns_are_refused_at_once(llm, ask, messages, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(llm, ask)(messages, **options)


@pytest.mark.parametrize(
    "prompt, continuation, message",
    [("", "x", "a prompt needs"), ("x", "", "a continuation needs"), ("x", ["y", []], "a continuation needs"), ("x", "y" * 80, "81 tok")],
)
def test_bad_scores_are_refused(llm, prompt, continuation, message):
    with pytest.raises(ValueError, match=message):
        llm.score(prompt, continuation)


@pytest.mark.parametrize("tokens", [5, None, "text", b"x", [1.5], [True], np.array(3), {3}], ids=repr)
def test_bad_replays_are_refused(llm, tokens):
    for ask in (lambda: llm.replay("x", tokens), lambda: llm.replay(["x"], tokens), lambda: llm.replay(["x"], [tokens])):
        with pytest.raises(ValueError, match="must be "):
            ask()
