"""Libraries that speak to models for others, a program for each in `programs`: an answer, tools, structured output, as far as it has them.

    pip install litellm instructor openai-agents "pydantic-ai-slim[openai]" llama-index-llms-openai-like llm inspect-ai "lm-eval[api]"
    PYTHON_OF_CLIENTS=... pytest -m slow -n 0 tests/clients/test_frameworks.py

They run in a process of their own, of the interpreter that PYTHON_OF_CLIENTS names; one that is not installed there is skipped. All of them
in one environment need versions of each other that there are not: inspect-ai, llama-index and lm-eval want one each.
"""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest
from replaying import Heard, turn
from serving import serve

from gptoss_jax import LLM

pytestmark = pytest.mark.slow

TRIP = '{"city": "Bern", "days": 2}'
PROGRAMS = sorted((Path(__file__).parent / "programs").glob("with_*.py"))


@pytest.fixture(scope="module")
def server():
    with serve(LLM("nano", slots=4, context=8192)) as served:
        served.otherwise = answer
        yield served


def answer(messages: list[Heard]) -> str | None:
    """The weather, and a trip as a call or an answer; all else is nano's own."""
    if messages[-1].author.startswith("functions.get_weather"):
        return turn(thought="Sunny.", answer="It is sunny.")
    if messages[-1].text == "How is it in Bern?":
        return turn(thought="A tool.", calls=[("get_weather", '{"city": "Bern"}')])
    if messages[-1].text == "Where to?":
        tools = re.findall(r"^type (\w+) = \(", "\n".join(one.text for one in messages if one.author == "developer"), re.MULTILINE)
        return turn(thought="South.", calls=[(tools[0], TRIP)]) if tools else turn(thought="South.", answer=TRIP)
    return None


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem.removeprefix("with_"))
def test_a_client(server, tmp_path, program):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "JAX_PLATFORMS")}
    environment |= {"SERVER": server.url, "OPENAI_API_KEY": "none", "HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1"}
    python = os.environ.get("PYTHON_OF_CLIENTS", sys.executable)
    done = subprocess.run([python, program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    if "ModuleNotFoundError" in done.stderr[-500:]:
        pytest.skip(f"{done.stderr.splitlines()[-1]} for {python}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
