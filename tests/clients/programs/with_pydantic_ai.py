"""pydantic-ai at the server that SERVER names: a tool is called and its result read, a class is filled, through either API."""

import os
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Trip(BaseModel):
    city: Literal["Bern", "Oslo"]
    days: Literal[1, 2, 3]


def get_weather(city: str) -> str:
    """Of a city."""
    return f"sunny in {city}"


for kind in (OpenAIChatModel, OpenAIResponsesModel):
    model = kind("nano", provider=OpenAIProvider(base_url=os.environ["SERVER"], api_key="none"))
    assert Agent(model, instructions="Be brief.", tools=[get_weather]).run_sync("How is it in Bern?").output == "It is sunny.", kind
    found = Agent(model, output_type=Trip).run_sync("Where to?").output
    assert isinstance(found, Trip), (kind, found)
