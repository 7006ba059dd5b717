"""Keywords that a call does not take: each call's own words, the right place or the nearest name, whatever it is given."""

import asyncio
import dataclasses
import inspect

from byte_tokenizer import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.keywords import SYNONYMS, UnknownKeyword, own_words, refuse
from gptoss_jax.turns.doors import ELSEWHERE, FURTHER


@pytest.fixture(scope="module")
def llm():
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=ByteTokenizer()), slots=4, context=64, chunk=16)


WORDS = [
    ("chat", {"max_tokens": 5}, "chat takes no max_tokens; it is an option of Sampling: pass sampling=Sampling(max_tokens=5)."),
    ("chat", {"max_new_tokens": 5}, "that is called max_tokens here; it is an option of Sampling: pass sampling=Sampling(max_tokens=5)."),
    ("chat", {"reasoning_efort": "low"}, "chat takes no reasoning_efort; the nearest that it takes is reasoning_effort."),
    ("chat", {"system": "x"}, "chat takes no system; that is called instructions here; pass instructions='x'."),
    ("stream", {"temprature": 2}, "stream takes no temprature; the nearest is temperature: it is an option of Sampling: "),
    ("achat", {"n": 2}, "achat takes no n; n is an argument of generate, "),
    ("astream", {"stream": True}, "astream takes no stream; call stream"),
    ("generate", {"tools": []}, "generate takes no tools; tools is an argument of chat and stream."),
    ("agenerate", {"prefix": 1}, "agenerate takes no prefix; it takes prompts, sampling, n, "),
    ("generate", {"prompt": "y"}, "generate takes no prompt; the nearest that it takes is prompts."),
    ("run", {"sampling": 1}, "run takes no sampling; it is a field of Task: pass Task(sampling=1)."),
    ("run", {"seed": 1}, "run takes no seed; it is an option of Sampling: pass Task(sampling=Sampling(seed=1))."),
    ("run", {"instructions": "y"}, """it is an option of a Task: pass Task(options={"instructions": 'y'})."""),
    ("render", {"tool": []}, "render takes no tool; the nearest that it takes is tools."),
    ("chat", {"x" * 10**6: 1}, "chat takes no 'xxx"),
    ("chat", {"a b\ud800": 1}, r"chat takes no 'a b\ud800'; it takes "),
]


@pytest.mark.parametrize("call, keywords, words", WORDS, ids=range(len(WORDS)))
def test_a_call_names_what_it_does_not_take_and_where_that_belongs(llm, call, keywords, words):
    async def ask():
        return await getattr(llm, call)("x", **keywords)

    with pytest.raises(TypeError) as error:
        asyncio.run(ask()) if call in ("achat", "agenerate") else getattr(llm, call)("x", **keywords)
    assert words in str(error.value) and str(error.value).startswith(f"{call} takes no ")
    assert len(str(error.value)) < 400 and str(error.value).endswith(".")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: gj.Sampling(max_token=5), "Sampling takes no max_token; the nearest that it takes is max_tokens."),
        (lambda: gj.Sampling(max_completion_tokens=5), "Sampling takes no max_completion_tokens; that is called max_tokens here; pass max"),
        (lambda: gj.Sampling(n=2), "Sampling takes no n; n is an argument of the call itself"),
        (lambda: gj.Task(message="x"), "Task takes no message; the nearest that it takes is messages."),
        (lambda: gj.Task(prompt="x", top_p=1), "Task takes no top_p; it is an option of Sampling"),
        (lambda: gj.Task(prompts="x"), "Task takes no prompts; the nearest that it takes is prompt."),
        (lambda: gj.Task(instructions="x"), """it is an option of chat: pass options={"instructions": 'x'}."""),
        (lambda: gj.LLM("nano", mesh=3), "LLM takes no mesh; it is an argument of load: LLM(load(..., mesh=3))."),
        (lambda: gj.LLM("nano", slot=3), "LLM takes no slot; the nearest that it takes is slots."),
    ],
)
def test_so_do_those_that_are_made(make, words):
    with pytest.raises(UnknownKeyword) as error:
        make()
    assert words in str(error.value)


def test_signatures_stay_what_they_are():
    assert "response_format" in inspect.signature(gj.LLM.chat).parameters
    assert inspect.iscoroutinefunction(gj.LLM.achat) and not inspect.iscoroutinefunction(gj.LLM.chat)
    assert list(inspect.signature(gj.Sampling).parameters)[:2] == ["temperature", "top_k"]
    assert {"instructions", "current_date", "knowledge_cutoff", "model_identity"} <= set(FURTHER) <= set(gj.LLM.chat.takes)
    assert set(gj.LLM.chat.takes) <= set(gj.LLM.achat.takes) == set(gj.LLM.astream.takes)
    for meant in SYNONYMS.values():  # leads somewhere
        assert meant in {*ELSEWHERE, *gj.LLM.chat.takes}


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text() | st.integers() | st.none(), st.integers() | st.text() | st.lists(st.none()), max_size=3))
def test_whatever_the_keywords_are_the_sentence_is_one_and_short(keywords):
    known = {"tools", "messages"}
    if keywords.keys() <= known:
        return
    with pytest.raises(UnknownKeyword) as error:
        refuse("chat", keywords, known, ELSEWHERE)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_a_decorated_call_takes_what_it_took():
    @own_words(further=("c",))
    def call(a, *rest, b=1, **more):
        return a, rest, b, more

    assert call(1, 2, b=3, c=4) == (1, (2,), 3, {"c": 4})
    assert call.takes == ("a", "b", "c")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        call(b=1)
