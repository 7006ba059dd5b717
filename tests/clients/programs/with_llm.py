"""The command line's `llm` at the server that SERVER names: an answer, whole and streamed, and a chain of calls."""

import os

from llm.default_plugins.openai_models import Chat


def get_weather(city: str) -> str:
    """Of a city."""
    return f"sunny in {city}"


model = Chat("nano", model_name="nano", api_base=os.environ["SERVER"], supports_tools=True, supports_schema=True)
model.needs_key, model.key = None, "none"
for stream in (False, True):
    assert "85" in model.prompt("What is 40 + 45?", stream=stream).text()
    assert model.chain("How is it in Bern?", tools=[get_weather], stream=stream).text() == "It is sunny."
