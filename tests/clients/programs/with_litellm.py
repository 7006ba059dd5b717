"""litellm at the server that SERVER names: tools, a stream put together, and /v1/responses."""

import os

import litellm

HOW = {"model": "openai/nano", "api_base": os.environ["SERVER"], "api_key": "none"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]

said = [{"role": "user", "content": "How is it in Bern?"}]
answer = litellm.completion(messages=said, tools=TOOLS, **HOW).choices[0]
assert answer.finish_reason == "tool_calls" and answer.message.reasoning_content == "A tool.", answer
call = answer.message.tool_calls[0]
said += [answer.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "sunny in Bern"}]
assert litellm.completion(messages=said, tools=TOOLS, **HOW).choices[0].message.content == "It is sunny."
chunks = list(litellm.completion(messages=said, tools=TOOLS, stream=True, stream_options={"include_usage": True}, **HOW))
whole = litellm.stream_chunk_builder(chunks, messages=said)
assert whole.choices[0].message.content == "It is sunny." and whole.usage.completion_tokens > 0, whole
answer = litellm.responses(input="What is 40 + 45?", **HOW)
assert any(item.type == "message" and "85" in item.content[0].text for item in answer.output), answer
