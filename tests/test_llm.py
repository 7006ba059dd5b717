"""LLM: prompts to completions through a real engine, and turns of a scripted one to replies and streams."""

import dataclasses

from byte_tokenizer import ByteTokenizer
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.engine.requests import Piece
from gptoss_jax.turns import tasks

GREEDY = gj.Sampling(temperature=0, max_tokens=24)
TOKENIZER = ByteTokenizer()
THINK = "<|channel|>analysis<|message|>27 + 58 is 85.<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 85. \N{SNOWMAN}!<|return|>"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 27, "b": 58}<|call|>'
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}


@pytest.fixture(scope="module")
def llm():
    model = small_model()
    return gj.LLM(dataclasses.replace(model, tokenizer=TOKENIZER), slots=4, context=64, chunk=16)


class Script:
    """An engine that says a given text, `size` tokens a piece, and stops where its request says."""

    context = 1024

    def __init__(self, text, size, params):
        self.params = params
        self.tokens, self.size, self.requests, self.said = TOKENIZER.encode_with_control(text), size, [], 0

    def run(self, requests):
        self.requests += requests
        return self._run(requests[0])

    def _run(self, request):
        stops = request.sampling.stop_token_ids
        ends = next((i + 1 for i, token in enumerate(self.tokens) if token in stops), len(self.tokens))
        for start in range(0, ends, self.size):
            if request.cancelled:
                return
            part = self.tokens[start : min(ends, start + self.size)]
            self.said += len(part)
            last = start + len(part) == ends
            reason = ("stop" if part[-1] in stops else "length") if last else None
            yield Piece(request, part, [-0.5] * len(part), [{token: -0.5} for token in part], reason)


def scripted(text, size=3):
    model = small_model()
    llm = gj.LLM(dataclasses.replace(model, tokenizer=TOKENIZER), context=1024)
    llm.engine = Script(text, size, llm.engine.params)
    return llm


# Plain continuation


def test_one_prompt_in_one_completion_out(llm):
    out = llm.generate("Hello", GREEDY)
    assert isinstance(out, gj.Completion)
    assert out.text == TOKENIZER.decode(out.tokens[:-1] if out.finish_reason == "stop" else out.tokens)
    assert (out.logprobs, out.top_logprobs) == (None, None)
    assert llm.generate(list(b"Hello"), GREEDY) == llm.generate(np.array(list(b"Hello")), GREEDY) == out


def test_a_list_in_a_list_out_in_order(llm):
    prompts = ["a long prompt of thirty letters", [7, 8], "x", "xy", [300] * 20]
    samplings = [dataclasses.replace(GREEDY, max_tokens=n) for n in (9, 5, 1, 8, 3)]
    outs = llm.generate(prompts, samplings)
    assert [len(out.tokens) for out in outs if out.finish_reason == "length"] == [
        s.max_tokens for s, out in zip(samplings, outs, strict=True) if out.finish_reason == "length"
    ]
    assert outs == [llm.generate(prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
    assert llm.generate(["x"], GREEDY) == [llm.generate("x", GREEDY)]


def test_control_tokens_in_text_stay_text(llm):
    assert tasks.ids_of(llm, "<|return|>") == list(b"<|return|>")


def test_logprobs_are_those_of_score(llm):
    out = llm.generate("Hello", dataclasses.replace(GREEDY, logprobs=2))
    assert len(out.logprobs) == len(out.top_logprobs) == len(out.tokens)
    assert all(list(top.values()) == sorted(top.values(), reverse=True) and len(top) == 2 for top in out.top_logprobs)
    assert [max(top, key=top.get) for top in out.top_logprobs] == list(out.tokens)
    np.testing.assert_allclose(llm.score("Hello", list(out.tokens)), out.logprobs, atol=1e-4)
    assert llm.generate("Hello", dataclasses.replace(GREEDY, logprobs=0)).top_logprobs is None


def test_scores_come_in_order(llm):
    one = llm.score("Hello", " world")
    assert one.shape == (6,) and one.dtype == np.float32 and np.all(one < 0)
    several = llm.score("Hello", ["!", " world", [3, 4]])
    assert [len(scores) for scores in several] == [1, 6, 2]
    np.testing.assert_allclose(several[1], one, atol=1e-4)


def test_a_stop_string_ends_the_text_and_the_request():
    plain = scripted("One.\n\nTwo.").generate("?", gj.Sampling())
    assert (plain.text, plain.finish_reason) == ("One.\n\nTwo.", "length")
    for size in (1, 2, 5, 6, 100):
        llm = scripted("One.\n\nTwo. Three. Four.", size)
        out = llm.generate("?", gj.Sampling(stop="\n\n", logprobs=0))
        assert (out.text, out.finish_reason) == ("One.", "stop")
        assert TOKENIZER.decode(out.tokens) == "One.\n\n" and len(out.logprobs) == 6
        assert llm.engine.said <= 6 + size  # it does not go on


# Turns


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_turn_is_read_by_channel(size):
    llm = scripted(THINK + ANSWER + "never said", size)
    reply = llm.chat("What is 27 + 58?", gj.Sampling(logprobs=1))
    assert (reply.text, reply.reasoning, reply.tool_calls) == ("It is 85. \N{SNOWMAN}!", "27 + 58 is 85.", ())
    assert (reply.finish_reason, reply.malformed) == ("stop", False)
    assert TOKENIZER.decode(reply.tokens) == THINK + ANSWER
    assert len(reply.logprobs) == len(reply.top_logprobs) == len(reply.tokens)
    assert "What is 27 + 58?" in TOKENIZER.decode(llm.engine.requests[0].prompt)
    history = [{"role": "user", "content": "Hi"}, *reply.messages, {"role": "user", "content": "And?"}]
    assert "<|channel|>final<|message|>It is 85. \N{SNOWMAN}!<|end|>" in TOKENIZER.decode(llm.render(history))


def test_a_turn_may_end_in_a_tool_call():
    llm = scripted(THINK + CALL)
    reply = llm.chat("What is 27 + 58?", tools=[ADD])
    assert (reply.finish_reason, reply.text) == ("tool_calls", "")
    [call] = reply.tool_calls
    assert (call.name, call.parsed) == ("add", {"a": 27, "b": 58})
    assert "type add = " in TOKENIZER.decode(llm.engine.requests[0].prompt)
    answer = {"role": "tool", "tool_call_id": "call_0", "content": "85"}
    again = TOKENIZER.decode(llm.render([{"role": "user", "content": "?"}, *reply.messages, answer], tools=[ADD]))
    assert "to=functions.add" in again and again.endswith("85<|end|><|start|>assistant")


def test_a_turn_shows_itself_in_a_notebook():
    reply = scripted(
        "<|channel|>analysis<|message|>Is 1<2 & so on?<|end|><|start|>assistant<|channel|>final<|message|>a <b>\nc<|return|>"
    ).chat("?")
    shown = reply._repr_html_()
    assert "Is 1&lt;2 &amp; so on?" in shown and "a &lt;b&gt;\nc" in shown and f"{len(reply.tokens)} tokens, stop" in shown
    assert "<details>" in shown and "<b>" not in shown


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("text", [THINK + ANSWER, THINK + CALL, THINK + ANSWER[:-14], "<|start|><|start|>oops<|message|>x<|end|>y"])
@pytest.mark.parametrize("stop", [(), ("85. ",), ("!?", "\N{SNOWMAN}"), ("never",)])
def test_a_stream_adds_up_to_the_chat(text, size, stop):
    sampling = gj.Sampling(stop=stop)
    reply = scripted(text, 1000).chat("?", sampling)
    stream = scripted(text, size).stream("?", sampling)
    pieces = list(stream)
    assert dataclasses.replace(stream.reply, tokens=()) == dataclasses.replace(reply, tokens=())
    said = lambda *channels: "".join(p.text for p in pieces if p.channel in channels and p.recipient is None)
    assert said("final", None) == reply.text
    assert said("analysis") == reply.reasoning
    assert all(piece.text or piece.begins or piece.ends for piece in pieces)
    calls = "".join(piece.text for piece in pieces if piece.recipient)
    assert calls == "".join(call.arguments for call in reply.tool_calls)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_stop_string_ends_the_answer_and_is_not_looked_for_in_the_reasoning(size):
    llm = scripted(THINK + ANSWER + "x" * 50, size)
    reply = llm.chat("?", gj.Sampling(stop=["85."]))
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("It is ", "27 + 58 is 85.", "stop")
    assert reply.messages[-1]["content"] == "It is "
    assert TOKENIZER.decode(reply.tokens).endswith("It is 85.")


def test_a_turn_that_is_cut_off_keeps_what_came():
    reply = scripted(THINK + "<|channel|>final<|message|>It is").chat("?")
    assert (reply.text, reply.finish_reason, reply.parsed.incomplete) == ("It is", "length", True)
    reply = scripted("<|channel|>analysis<|message|>27 +").chat("?")
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("", "27 +", "length")


def test_a_malformed_turn_is_marked():
    reply = scripted("<|channel|>final<|message|>a<|start|><|start|>assistant<|return|>").chat("?")
    assert reply.malformed and reply.text == "a"


def test_leaving_a_stream_early_keeps_what_came():
    stream = scripted(THINK + ANSWER, 1).stream("?")
    assert next(stream).channel == "analysis" and next(stream).text == "2"
    assert stream.reply.reasoning == "2" and stream.reply.finish_reason == "cancelled"


def test_ignore_eos_goes_on_through_the_end_of_a_turn():
    reply = scripted(ANSWER + "more").chat("?", gj.Sampling(ignore_eos=True, max_tokens=1000))
    assert TOKENIZER.decode(reply.tokens) == ANSWER + "more"


# The bundled checkpoint


@pytest.fixture(scope="module")
def nano():
    return gj.LLM(gj.load("nano", progress=False), slots=1, context=512)


def test_nano_s_chat_stream_and_continuation_are_one(nano):
    question, options = "What is 27 + 58?", {"reasoning_effort": "low", "current_date": "2025-06-28"}
    sampling = gj.Sampling(temperature=0, max_tokens=200)
    reply = nano.chat(question, sampling, **options)
    assert (reply.finish_reason, reply.malformed) == ("stop", False)
    assert reply.text and reply.reasoning
    stream = nano.stream(question, sampling, **options)
    assert "".join(piece.text for piece in stream if piece.channel == "final") == reply.text
    assert stream.reply == reply
    assert nano.generate(nano.render(question, **options), sampling).tokens == reply.tokens
    drawn = gj.Sampling(temperature=1, seed=5, max_tokens=200)
    assert nano.chat(question, drawn, **options) == nano.chat(question, drawn, **options)
    history = [{"role": "user", "content": question}, *reply.messages, {"role": "user", "content": "What is 3 + 4?"}]
    assert nano.chat(history, sampling, **options).finish_reason == "stop"


def test_nano_s_answer_ends_before_a_stop_string(nano):
    sampling = gj.Sampling(temperature=0, max_tokens=200)
    whole = nano.chat("What is 27 + 58?", sampling, current_date="2025-06-28")
    stop = whole.text[3:5]
    cut = nano.chat("What is 27 + 58?", dataclasses.replace(sampling, stop=stop), current_date="2025-06-28")
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert (cut.reasoning, cut.tokens) == (whole.reasoning, whole.tokens[: len(cut.tokens)])


def test_a_model_without_a_tokenizer_takes_token_ids_only():
    llm = gj.LLM(small_model(), slots=4, context=64, chunk=16)
    assert llm.generate([7, 8], GREEDY).text == ""
    for ask in (lambda: llm.generate("x"), lambda: llm.chat("x"), lambda: llm.generate([7], gj.Sampling(stop="x"))):
        with pytest.raises(ValueError, match="tokenizer"):
            ask()
