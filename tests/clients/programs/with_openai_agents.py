"""openai-agents at the server that SERVER names: a tool is called and its result read, through either API, whole and streamed."""

import asyncio
import os

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

QUESTION, ANSWER = "How is it in Bern?", "It is sunny."


@function_tool
def get_weather(city: str) -> str:
    """Of a city."""
    return f"sunny in {city}"


async def main() -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=os.environ["SERVER"], api_key="none")
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        agent = Agent(name="one", instructions="Be brief.", tools=[get_weather], model=kind(model="nano", openai_client=client))
        assert (await Runner.run(agent, QUESTION)).final_output == ANSWER, kind
        run = Runner.run_streamed(agent, QUESTION)
        async for _ in run.stream_events():
            pass
        assert run.final_output == ANSWER, kind


asyncio.run(main())
