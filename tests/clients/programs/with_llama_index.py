"""llama-index' OpenAILike at the server that SERVER names: an answer and its stream, a tool that is called, plain text."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

HOW = {"model": "nano", "api_base": os.environ["SERVER"], "api_key": "none", "context_window": 4096, "temperature": 0}


def get_weather(city: str) -> str:
    """Of a city."""
    return f"sunny in {city}"


llm = OpenAILike(is_chat_model=True, is_function_calling_model=True, **HOW)
said = [ChatMessage(role="user", content="What is 40 + 45?")]
whole = llm.chat(said).message.content
assert "85" in whole, whole
assert "".join(piece.delta or "" for piece in llm.stream_chat(said)) == whole
answer = llm.predict_and_call([FunctionTool.from_defaults(get_weather)], "How is it in Bern?")
assert str(answer) == "sunny in Bern", answer
assert OpenAILike(is_chat_model=False, **HOW).complete("What is").text
