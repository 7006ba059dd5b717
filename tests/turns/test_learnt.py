"""What is learnt of a turn is what the engine drew: prompt and tokens of a reply are the conversation, and the mask lies on the tokens."""

import pytest

import gptoss_jax as gj

WEATHER = {
    "name": "get_weather",
    "description": "Current weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
GREEDY = gj.Sampling(temperature=0, max_tokens=200)


@pytest.fixture(scope="module")
def llm():
    return gj.LLM("nano", slots=4, context=1024)


def learnt(llm, messages, reply, **options):
    """The whole conversation; checks that its last turn is what was drawn."""
    prompt = llm.render(messages, **options)
    whole = llm.render([*messages, *reply.messages], train_on="assistant", **options)
    assert whole.ids == [*prompt, *reply.tokens]
    assert whole.mask[len(prompt) :] == [True] * len(reply.tokens) and not any(whole.mask[len(prompt) - 2 : len(prompt)])
    return whole


@pytest.mark.thorough
@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_answers(llm, effort):
    for text in ("What is 40 + 45?", "Hello", "What is 27 + 58?"):
        messages, options = [{"role": "user", "content": text}], {"reasoning_effort": effort}
        reply = llm.chat(messages, GREEDY, **options)
        assert reply.finish_reason == "stop" and reply.reasoning
        whole = learnt(llm, messages, reply, **options)
        assert sum(whole.mask) == len(reply.tokens)
        final = llm.render([*messages, *reply.messages], train_on="final", **options)
        answer = [token for token, learn in zip(final.ids, final.mask, strict=True) if learn]
        assert llm.tokenizer.decode(answer) == f"<|start|>assistant<|channel|>final<|message|>{reply.text}<|return|>"


@pytest.mark.thorough
def test_a_call_its_result_and_what_comes_after_it(llm):
    messages, options = [{"role": "user", "content": "What is the weather in Bern?"}], {"tools": [WEATHER]}
    call = llm.chat(messages, GREEDY, **options)
    assert call.finish_reason == "tool_calls"
    learnt(llm, messages, call, **options)
    calls = llm.render([*messages, *call.messages], train_on="calls", **options)
    text = llm.tokenizer.decode([token for token, learn in zip(calls.ids, calls.mask, strict=True) if learn])
    assert text.startswith("<|start|>assistant<|channel|>commentary to=functions.get_weather") and text.endswith("}<|call|>")
    messages += [*call.messages, {"role": "tool", "name": "get_weather", "content": '{"temperature": 21}'}]
    answer = llm.chat(messages, GREEDY, **options)
    whole = learnt(llm, messages, answer, **options)
    assert sum(whole.mask) == len(call.tokens) + len(answer.tokens), "with a pending result nothing is dropped: both turns are exact"
    messages += [*answer.messages, {"role": "user", "content": "What is 40 + 45?"}]
    learnt(llm, messages, llm.chat(messages, GREEDY, **options), **options)


@pytest.mark.thorough
def test_sampled_turns_that_are_spelled_as_an_encoder_does(llm):
    """Others have the text, not the tokens: those are learnt from `prompt + tokens` themselves."""
    messages = [{"role": "user", "content": "What is 19 + 33?"}]
    outcomes = llm.run(gj.Task(messages=messages, sampling=gj.Sampling(temperature=1, seed=i, max_tokens=200)) for i in range(16))
    replies = [outcome.answers[0] for outcome in outcomes]
    whole = [one for one in replies if one.finish_reason == "stop" and not one.malformed]
    encoded = [one for one in whole if llm.tokenizer.encode_with_control(llm.tokenizer.decode(one.tokens)) == list(one.tokens)]
    assert len(encoded) >= 8
    for reply in encoded:
        learnt(llm, messages, reply)


@pytest.mark.thorough
def test_what_render_refuses(llm):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match=r"^train_on takes whole conversations, whose last message has ended; leave continue"):
        llm.render(said, train_on="final", continue_final_message=True)
    with pytest.raises(ValueError, match=r"^with train_on the last message must be the assistant's; got the role user"):
        llm.render("a", train_on="final")
    with pytest.raises(TypeError, match=r"chat takes no train_on; train_on is an argument of render"):
        llm.chat("a", train_on="final")
    assert llm.render(said, train_on="final", continue_final_message=False).ids[: len(llm.render("a"))] == llm.render("a")
