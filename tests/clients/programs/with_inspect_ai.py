"""inspect-ai at the server that SERVER names: an evaluation of two questions, one of which needs a tool, through either API."""

import os
import tempfile

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def get_weather():
    async def execute(city: str):
        """Of a city.

        Args:
            city: Which.
        """
        return f"sunny in {city}"

    return execute


samples = [Sample(input="What is 40 + 45?", target="85"), Sample(input="How is it in Bern?", target="sunny")]
for responses in (False, True):
    model = get_model("openai-api/local/nano", base_url=os.environ["SERVER"], api_key="none", responses_api=responses)
    task = Task(samples, solver=[use_tools(get_weather()), generate()], scorer=includes())
    [log] = eval(task, model, display="none", log_dir=tempfile.mkdtemp())
    assert log.status == "success" and log.results.scores[0].metrics["accuracy"].value == 1, (responses, log.error, log.results)
