"""Lines of a batch's input: what both forms say is honoured, and what cannot be honoured is refused by name."""


from batch_lines import HELLO, chat, completions, read, responses, task_of
import pytest

from gptoss_jax.batch import lines
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.openai.errors import Refused
from gptoss_jax.sampling.options import Sampling

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
SCHEMA = {"name": "answer", "schema": {"type": "object"}, "strict": True}
EXTRAS = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 1.0, "frequency_penalty": -1.0,
    "repetition_penalty": 1.1, "logit_bias": {"17": -100}, "seed": 3, "stop": ["\n"], "stop_token_ids": [4], "ignore_eos": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "content, limit",
    [
        ({"id": "a", "prompt": "x"}, "max_tokens"),
        ({"id": "a", "messages": HELLO}, "max_tokens"),
        (chat(), "max_tokens"),
        (chat(), "max_completion_tokens"),
        (responses(), "max_output_tokens"),
        (completions(), "max_tokens"),
    ],
)
def test_every_sampling_option_is_taken_in_every_form(content, limit):
    options = EXTRAS | {limit: 12}
    content = content | options if "body" not in content else content | {"body": content["body"] | options}
    assert task_of(content).sampling == Sampling(**EXTRAS | {"logit_bias": {17: -100}}, max_tokens=12)


def test_filters_beside_greedy_are_taken_as_clients_send_them():
    for content in ({"id": "a", "messages": HELLO}, {"id": "a", "prompt": "x"}, chat(), responses()):
        for options, wanted in (
            ({"temperature": 0, "top_p": 0.9, "top_k": 40, "min_p": 0.1}, {}),
            ({"temperature": 0, "top_k": -1}, {"top_k": 0}),
            ({"temperature": 1, "top_p": 0}, {}),
        ):
            body = content | options if "body" not in content else content | {"body": content["body"] | options}
            how = task_of(body).sampling
            assert how.greedy and {name: getattr(how, name) for name in options} == options | wanted


def test_what_a_line_does_not_say_comes_from_the_defaults():
    for content in ({"id": "a", "messages": HELLO}, chat(), responses()):
        task = task_of(content)
        assert (task.sampling.temperature, task.sampling.max_tokens, task.reasoning_effort) == (0.5, 77, "low")
        assert (task.n, task.priority, task.time_limit, task.tools, task.response_format) == (1, 0, None, None, None)


def test_seeds_come_from_the_jobs_seed_and_the_id():
    seeds = [task_of({"id": name, "prompt": "x"}).sampling.seed for name in ("a", "b", 1, "a")]
    assert seeds[0] == seeds[3] and len(set(seeds)) == 3 and max(seeds) < 2**62
    other = lines.read(lines.parse(b'{"id": "a", "prompt": "x"}', 1), Defaults(seed=10))
    assert other.tasks[0].sampling.seed != seeds[0]


def test_conversations():
    plain = {"id": 1, "messages": HELLO, "instructions": "Be brief.", "reasoning_effort": "high", "tools": [WEATHER], "time_limit": 2.5}
    task = task_of(plain | {"n": 3, "priority": -1, "response_format": {"type": "json_object"}})
    assert task.messages == HELLO and task.options == {"instructions": "Be brief."} and task.tools == [WEATHER]
    assert (task.n, task.priority, task.time_limit, task.reasoning_effort) == (3, -1, 2.5, "high")
    assert task.response_format == {"type": "json_object"}
    task = task_of(chat(n=2, tools=[{"type": "function", "function": WEATHER}], reasoning_effort="high", top_logprobs=3, logprobs=True))
    assert task.n == 2 and task.tools[0]["function"] == WEATHER and task.sampling.logprobs == 3
    assert task_of(chat(logprobs=True)).sampling.logprobs == 0 and task_of(chat(logprobs=False)).sampling.logprobs is None
    task = task_of(responses(instructions="Be brief.", reasoning={"effort": "high"}, text={"format": {"type": "json_schema", **SCHEMA}}))
    assert task.reasoning_effort == "high" and task.options == {"instructions": "Be brief."}
    assert task.response_format == {"type": "json_schema", "json_schema": SCHEMA}
    task = task_of(responses(include=["message.output_text.logprobs"], top_logprobs=2))
    assert task.sampling.logprobs == 2


def test_tools_are_not_shown_where_none_may_be_called():
    for choice, shown in (("none", None), ("auto", [WEATHER]), (None, [WEATHER])):
        assert task_of(chat(tools=[WEATHER], tool_choice=choice)).tools == shown
        assert task_of({"id": "a", "messages": HELLO, "tools": [WEATHER], "tool_choice": choice}).tools == shown


def test_which_tools_are_called_and_how_many():
    for content in (chat(tools=[WEATHER]), {"id": "a", "messages": HELLO, "tools": [WEATHER]}, responses(tools=[WEATHER])):
        more = {"tool_choice": "required", "parallel_tool_calls": False}
        task = task_of(content | more if "body" not in content else content | {"body": content["body"] | more})
        assert (task.tools, task.tool_choice, task.parallel_tool_calls) == ([WEATHER], "required", False)


def test_a_line_of_completions_has_a_task_for_each_prompt():
    first, second = read(completions(prompt=["x", "y"], n=2, max_tokens=3)).tasks
    assert (first.prompt, second.prompt, first.n) == ("x", "y", 2) and first.sampling.seed != second.sampling.seed


def test_prompts_are_text_or_ids():
    assert task_of({"id": "a", "prompt": "x"}).prompt == "x"
    assert task_of({"id": "a", "prompt": [1, 2]}).prompt == [1, 2]
    form = {"type": "regex", "regex": "[0-9]+"}
    assert task_of({"id": "a", "prompt": "x", "response_format": form}).response_format == form


def test_nulls_and_what_needs_nothing_done_are_taken():
    read(chat(user="u", metadata={"a": "b"}, store=True, service_tier="auto", stream=False, parallel_tool_calls=True, audio=None, n=None))
    read(chat(modalities=["text"], response_format={"type": "text"}, whatever=None))
    read(responses(user="u", metadata={}, store=False, truncation="disabled", background=False, text={"verbosity": "medium"}))


def test_items_of_a_response_become_messages():
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]},
        {"type": "reasoning", "id": "rs_2", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"role": "assistant", "phase": "commentary", "content": "So:"},
    ]
    assert task_of(responses(input=items)).messages == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"role": "assistant", "reasoning": "Look."},
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "So:", "channel": "commentary"},
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"{", "no JSON"),
        (b'{"id": NaN, "prompt": "x"}', "no number"),
        (b'{"id": "a", "prompt": "x", "temperature": 1e999}', "no number"),
        (b'"text"', "JSON object; got a string"),
        (b'{"id": "\xff"}', "UTF-8; byte 8"),
        (b"[" * 100_000, "no JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "no JSON"),
        ({"prompt": "x"}, "id must be a string"),
        ({"id": True, "prompt": "x"}, "id must be"),
        ({"id": "", "prompt": "x"}, "id must be"),
        (chat() | {"custom_id": 7}, "custom_id must be a string"),
        ({"id": "a"}, "prompt or messages"),
        ({"id": "a", "prompt": "x", "messages": HELLO}, "either"),
        ({"id": "a", "prompt": ["x", "y"]}, "prompt must"),
        ({"id": "a", "prompt": "x", "tools": [WEATHER]}, "tools needs messages"),
        ({"id": "a", "prompt": "x", "instructions": "y"}, "instructions needs messages"),
        ({"id": "a", "prompt": "x", "top-p": 1}, "top-p is no field"),
        ({"id": "a", "prompt": "x", "temperature": "hot"}, "temperature must"),
        ({"id": "a", "prompt": "x", "top_k": -2}, "top_k must"),
        ({"id": "a", "prompt": "x", "n": 0}, "n must"),
        ({"id": "a", "prompt": "x", "n": 1e9}, "n must"),
        ({"id": "a", "prompt": "x", "priority": "high"}, "priority must"),
        ({"id": "a", "prompt": "x", "time_limit": 0}, "time_limit must"),
        ({"id": "a", "prompt": "x", "return_tokens": 1}, "return_tokens must"),
        ({"id": "a", "prompt": "x", "logit_bias": {"word": 1}}, "logit_bias"),
        ({"id": "a", "messages": 5}, "messages must be a list"),
        ({"id": "a", "messages": HELLO, "instructions": 5}, "instructions must"),
        (chat() | {"method": "GET"}, "method must be POST"),
        (chat() | {"url": "/v1/embeddings"}, "url must be /v1/chat/completions or /v1/responses or /v1/completions; got '/v1/embeddings'"),
        (chat() | {"url": ["x"]}, "url must be"),
        (chat() | {"body": "x"}, "body must be an object"),
        (chat() | {"extra": 1}, "extra is no field"),
        (chat(stream=True), "stream must be false; got true"),
        (chat(parallel_tool_calls="no"), "parallel_tool_calls must be true or false"),
        (completions(echo=True), "echo must be false; got true"),
        (completions(prompt=None), "prompt must be a string, a list"),
        (completions(suffix="x"), "suffix must be"),
        (chat(audio={"voice": "x"}), "audio must be left out"),
        (chat(time_limit=3), "time_limit is no field"),
        (chat(messages="Hello"), "messages must be a list"),
        (chat(max_tokens=3, max_completion_tokens=4), "must be the same"),
        (chat(top_logprobs=3), "needs logprobs"),
        (chat(logprobs=3), "logprobs must be true or false"),
        (chat(tools=[WEATHER], tool_choice="any"), "tool_choice must"),
        (responses(tools=[WEATHER], tool_choice={"type": "web_search"}), "tool_choice must"),
        (responses(reasoning={"effort": "x"}), r"^reasoning\.effort must be minimal .* got 'x'"),
        (chat(tools=WEATHER), "tools must be a list"),
        (chat(response_format="json"), "response_format must be an object"),
        (chat(model=5), "model must"),
        (responses(input=None), "input must"),
        (responses(input=[{"type": "web_search_call"}]), r"input\[0\] must be a message"),
        (responses(input=[{"type": "reasoning", "encrypted_content": "x"}]), r"input\[0\] must"),
        (responses(input=[{"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}]), r"input\[0\] must .* got 'summary'"),
        (responses(input=[{"role": "user", "content": "Hi", "name": "x"}]), r"input\[0\] must hold nothing that .* got 'name': 'x'"),
        (responses(input=[{"role": "assistant", "content": "Hi", "phase": "x"}]), r"input\[0\]: phase must be commentary or final_answer"),
        (responses(input=[{"role": "user", "content": "Hi", "phase": "commentary"}]), r"input\[0\]: phase must be .* of the assistant's"),
        (responses(previous_response_id="x"), "previous_response_id must be left out"),
        (responses(reasoning={"effort": "low", "summary": "auto"}), r"^reasoning\.summary must be left out"),
        (responses(reasoning={"budget": 1}), r"^reasoning\.budget is no field"),
        (responses(truncation="auto"), "truncation must be disabled"),
        (responses(top_logprobs=3), "needs .include"),
        (responses(include=["reasoning.encrypted_content"]), "include must"),
        (responses(n=2), "n is no field"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(content, words):
    with pytest.raises(Refused, match=words):
        read(content)


BEGUN = [*HELLO, {"role": "assistant", "content": "Hi, my name"}]


def test_a_last_message_may_be_continued_in_every_form():
    items = [
        {"role": "user", "content": "Hello"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
    ]
    for content in (
        {"id": "a", "messages": BEGUN, "continue_final_message": True},
        chat(messages=BEGUN, continue_final_message=True),
        chat(messages=BEGUN, continue_final_message=True, add_generation_prompt=False, echo=False),
        chat(messages=BEGUN, continue_final_message=True, add_generation_prompt=None),
        responses(input=items, continue_final_message=True),
    ):
        task = task_of(content)
        assert task.options == {"continue_final_message": True} and task.messages[-1]["role"] == "assistant"
    both = task_of(responses(input=items, continue_final_message=True, instructions="Be.")).options
    assert both == {"continue_final_message": True, "instructions": "Be."}
    for content in (
        chat(continue_final_message=False),
        chat(add_generation_prompt=True),
        chat(continue_final_message=False, add_generation_prompt=True),
        responses(continue_final_message=False),
        {"id": "a", "messages": HELLO, "continue_final_message": False},
    ):
        assert task_of(content).options == {}


@pytest.mark.parametrize(
    ("content", "field", "says"),
    [
        (chat(messages=BEGUN, continue_final_message=True, add_generation_prompt=True), "add_generation_prompt", "must not be true where"),
        (chat(add_generation_prompt=False), "add_generation_prompt", "must not be false where"),
        (chat(continue_final_message="yes"), "continue_final_message", "must be true or false; got 'yes'"),
        (chat(add_generation_prompt=0), "add_generation_prompt", "must be true or false; got 0"),
        (chat(messages=BEGUN, continue_final_message=True, echo=True), "echo", "echo must be false"),
        (responses(continue_final_message=1), "continue_final_message", "must be true or false; got 1"),
        ({"id": "a", "prompt": "x", "continue_final_message": True}, "continue_final_message", "needs messages"),
    ],
)
def test_what_cannot_be_continued_is_refused(content, field, says):
    with pytest.raises(Refused, match=says) as refused:
        read(content)
    assert refused.value.field == field
