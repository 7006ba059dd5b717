"""A turn whose last message is continued: what is new, the whole of it, and the same bits beside others."""

import dataclasses

from as_written import written
from byte_tokenizer import ByteTokenizer
import pytest
from small_model import small_model
from small_vocabulary import small_vocabulary

import gptoss_jax as gj
from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.harmony import continued
from gptoss_jax.turns.reply import ReplyBuilder

QUESTION = {"role": "user", "content": "27 + 58?"}


def said(**message):
    return {"role": "assistant", **message}


def built(last, rest, *, size=2, stop=(), reason="stop"):
    """The reply to a conversation that ends with last, of a model that says rest, and what was shown meanwhile."""
    small = small_vocabulary()
    request = Request([1], gj.Sampling(stop=stop))
    builder = ReplyBuilder(request, small, continued([QUESTION, last]))
    tokens, shown = written(small, rest), []
    for at in range(0, len(tokens), size):
        part = tokens[at : at + size]
        shown += builder.add(Piece(request, part, [0.0] * len(part), [{}] * len(part), reason if at + size >= len(tokens) else None))
    return builder.result(), shown


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("last", "rest", "text", "reasoning", "messages"),
    [
        (said(content="It is"), " 85.R!", " 85.", "", [said(content="It is 85.")]),
        (said(reasoning="Hm", content="It is"), " 85.R!", " 85.", "", [said(reasoning="Hm", content="It is 85.")]),
        (said(reasoning="27 "), "is.E!S!assistantC!finalM!85R!", "85", "is.", [said(reasoning="27 is.", content="85")]),
        (said(reasoning="27 "), "is.", "", "is.", [said(reasoning="27 is.")]),
        (said(content="It is"), "R!", "", "", [said(content="It is")]),
        (said(content=""), "85R!", "85", "", [said(content="85")]),
        (
            said(channel="commentary", content="See"),
            ".E!S!assistantC!finalM!85R!",
            "85",
            "",
            [said(channel="commentary", content="See."), said(content="85")],
        ),
    ],
)
def test_a_reply_says_what_is_new_and_holds_the_whole(last, rest, text, reasoning, messages, size):
    reply, shown = built(last, rest, size=size)
    assert (reply.text, reply.reasoning, reply.messages, reply.malformed) == (text, reasoning, messages, False)
    assert "".join(one.text for one in shown if one.channel == "final") == text
    assert "".join(one.text for one in shown if one.channel == "analysis") == reasoning


def test_a_call_after_reasoning_that_was_begun():
    reply, _ = built(said(reasoning="Add"), 'ing.E!S!assistantC!commentary to=functions.add K!jsonM!{"a": 1}A!')
    assert (reply.finish_reason, reply.tool_calls[0].parsed, reply.reasoning) == ("tool_calls", {"a": 1}, "ing.")
    [message] = reply.messages
    assert message["reasoning"] == "Adding." and message["tool_calls"][0]["function"]["name"] == "add"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_stop_strings_are_looked_for_in_what_is_new(size):
    reply, shown = built(said(reasoning="Hm.", content="One. Two"), " three. FourR!", stop=(".",), size=size)
    assert reply.text == "".join(one.text for one in shown) == " three" and reply.finish_reason == "stop"
    assert reply.messages == [said(reasoning="Hm.", content="One. Two three")]
    reply, _ = built(said(reasoning="One."), " Two.E!S!assistantC!finalM!Three. FourR!", stop=(".",), size=size)
    assert (reply.text, reply.reasoning) == ("Three", " Two.")
    assert reply.messages == [said(reasoning="One. Two.", content="Three")]


def test_a_stop_string_in_a_second_answer_leaves_what_was_begun_in_the_first():
    reply, _ = built(said(content="One"), ".E!S!assistantC!finalM!Two. ThreeR!", stop=(" Th",))
    assert (reply.text, reply.messages) == (".Two.", [said(content="One."), said(content="Two.")])
    for begun, last in ((said(content="One"), "One"), (said(reasoning="r", content=""), "")):
        reply, _ = built(begun, "xR!", stop=("x",))
        assert (reply.text, reply.messages) == ("", [begun | {"content": last}])


def test_what_breaks_on_the_way_keeps_what_was_begun(monkeypatch):
    last = said(reasoning="Hm", content="It is")
    monkeypatch.setattr(ReplyBuilder, "_show", lambda self, delta: 1 / 0)
    reply, _ = built(last, " 85.R!", size=1)
    assert reply.finish_reason == "error" and reply.messages == [said(reasoning="Hm", content="It is 8"[: 5 + len(reply.text)])]
    monkeypatch.setattr("gptoss_jax.harmony.parse", lambda *_, **__: 1 / 0)
    reply, _ = built(last, " 85.R!")
    assert reply.finish_reason == "error" and reply.messages == [last]


# With an engine


@pytest.fixture(scope="module")
def llm():
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=ByteTokenizer()), slots=4, context=1024, chunk=64)


@pytest.mark.thorough
def test_the_same_bits_alone_and_beside_others(llm):
    sampling = gj.Sampling(seed=3, max_tokens=9, logprobs=1)
    lasts = [said(content="It is"), said(reasoning="Hm"), said(reasoning="Hm", content="It")]
    alone = [llm.chat([QUESTION, last], sampling, continue_final_message=True) for last in lasts]
    together = [
        gj.Task(key=i, messages=[QUESTION, last], sampling=sampling, options={"continue_final_message": True})
        for i, last in enumerate(lasts)
    ]
    together.append(gj.Task(key=3, messages=[QUESTION], sampling=sampling))
    found = {outcome.task.key: outcome for outcome in llm.run(together)}
    assert [found[i].answers[0] for i in range(3)] == alone and found[3].error is None
    for last, reply in zip(lasts, alone, strict=True):
        ids = llm.render([QUESTION, last], continue_final_message=True)
        assert llm.generate(ids, sampling).tokens[: len(reply.tokens)] == reply.tokens  # which goes on past the end of a turn
        assert llm.replay(ids, reply.tokens, top_logprobs=1).logprobs == reply.logprobs
        stream = llm.stream([QUESTION, last], sampling, continue_final_message=True)
        list(stream)
        assert stream.reply == reply


@pytest.mark.thorough
def test_one_bad_beginning_is_one_bad_outcome(llm):
    sampling = gj.Sampling(max_tokens=1)
    bad = [[QUESTION], "27 + 58?", [QUESTION, said()], [QUESTION, said(tool_calls=[{"function": {"name": "add"}}])]]
    tasks = [gj.Task(messages=one, sampling=sampling, options={"continue_final_message": True}) for one in bad]
    tasks += [gj.Task(messages=[QUESTION, said(content="x")], sampling=sampling, options={"continue_final_message": "yes"})]
    tasks += [gj.Task(messages=[QUESTION, said(content="x")], sampling=sampling, options={"continue_final_message": True})]
    found = list(llm.run(tasks))
    assert len(found) == 6 and [bool(one.error) for one in found].count(False) == 1
    assert not any(one.failed for one in found)


@pytest.mark.thorough
def test_an_answer_that_was_cut_off_goes_on(llm):
    sampling, history = gj.Sampling(seed=1, max_tokens=4), [QUESTION, said(content="It is")]
    for _ in range(3):
        reply = llm.chat(history, sampling, continue_final_message=True)
        history = history[:-1] + reply.messages
    assert history[0] == QUESTION and history[1]["content"].startswith("It is") and len(history[1]["content"]) > len("It is")
