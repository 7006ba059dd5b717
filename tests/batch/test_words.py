"""What a line is refused for is said in its own words, and names the field that it has."""

from batch_lines import chat, read, responses
import pytest

from gptoss_jax.batch import lines
from gptoss_jax.openai.errors import Refused


@pytest.mark.parametrize(
    ("content", "field", "says"),
    [
        (responses(max_output_tokens=0), "max_output_tokens", "max_output_tokens must"),
        (responses(top_logprobs=21, include=["message.output_text.logprobs"]), "top_logprobs", "top_logprobs must .* pass null"),
        (responses(reasoning={"summary": "auto"}), "reasoning", "reasoning.summary must be left out"),
        (responses(text={"verbosity": "high"}), "text", "text.verbosity must be medium"),
        (chat(max_completion_tokens=0), "max_completion_tokens", "max_completion_tokens must"),
        (chat(max_tokens=0), "max_tokens", "max_tokens must"),
        (chat(logprobs=True, top_logprobs=21), "top_logprobs", "top_logprobs must .* got 21; pass null"),
        (chat(stop_token_ids=["x"]), "stop_token_ids", "stop_token_ids.s token id must"),
        (chat(logit_bias={"word": 1}), "logit_bias", "logit_bias"),
        ({"id": "a", "prompt": "x", "logprobs": 21}, "logprobs", "logprobs must"),
    ],
)
def test_refusals_name_the_field_that_the_line_has(content, field, says):
    with pytest.raises(Refused, match=f"^{says}") as refused:
        read(content)
    assert refused.value.field == field


ITEMS = [{"role": "user", "content": "Hi"}, {"type": "reasoning", "summary": []}, {"type": "function_call_output", "output": "x"}]


@pytest.mark.parametrize(
    ("content", "sentence", "field", "says"),
    [
        (responses(input=ITEMS), "messages[1] is a tool result of no known call", "input", "input[2] is a tool result of no known call"),
        (responses(input=[]), "messages is empty; pass one", "input", "input is empty; pass one"),
        (responses(reasoning={"effort": "low"}), "reasoning_effort must be x", "reasoning", "reasoning.effort must be x"),
        (responses(text={}), "response_format.json_schema must hold a schema", "text", "text.format must hold a schema"),
        (responses(tools=[]), "tools[0]: name must be", "tools", "tools[0]: name must be"),
        (responses(), "a prompt must be shorter", None, "a prompt must be shorter"),
        (chat(messages=[]), "messages[0]: role must be x; got 'None', None", "messages", "messages[0]: role must be x; got 'None', null"),
        (chat(response_format={}), "response_format.type must", "response_format", "response_format.type must"),
        ({"id": "a", "messages": [], "reasoning_effort": "low"}, "reasoning_effort must", "reasoning_effort", "reasoning_effort must"),
    ],
)
def test_what_the_model_refuses_is_said_in_the_words_of_the_line(content, sentence, field, says):
    refused = lines.refused(read(content), sentence, "invalid_request")
    assert (str(refused), refused.field, refused.code) == (says, field, "invalid_request")
