"""Suites that others wrote for servers of gpt-oss and of /v1/responses, from checkouts of theirs; they fetch packages of npm's.

    git clone https://github.com/openai/gpt-oss; git clone https://github.com/openresponses/openresponses
    GPT_OSS=gpt-oss OPEN_RESPONSES=openresponses pytest -m slow -n 0 tests/clients/test_suites.py

The model says what a script says, so that what is tried is everything but the model.
"""

import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest
from replaying import Heard, turn
from serving import serve

from gptoss_jax import LLM

pytestmark = pytest.mark.slow

CONTEXT = 1 << 17  # one test sends 100,000 characters, each of which is a token of nano's

# What the suite asks of packages that are not here, and the server that it is to ask.
ENDPOINTS = """
import os, sys, types
from unittest.mock import MagicMock
import httpx, openai_harmony

def module(name, **what):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(what)

openai_harmony.load_harmony_encoding = MagicMock()
status = types.SimpleNamespace(HTTP_200_OK=200, HTTP_422_UNPROCESSABLE_ENTITY=422)
module("fastapi", status=status)
module("fastapi.testclient", TestClient=lambda app: httpx.Client(base_url=app, timeout=300))
module("gpt_oss")
module("gpt_oss.responses_api")
module("gpt_oss.responses_api.api_server", create_api_server=lambda **_: os.environ["SERVER"])
"""
WANT_422 = ("test_missing_required_fields", "test_malformed_json")  # where OpenAI's own API says 400


@pytest.fixture(scope="module")
def server():
    with serve(LLM("nano", slots=2, context=CONTEXT, cache_tokens=CONTEXT + 40_000)) as served:
        yield served


def checkout(variable: str) -> Path:
    """Where a repository lies; skips the test where nobody says it."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} must name a checkout of the suite's repository; see the top of this file")
    return Path(os.environ[variable]).absolute()


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=1800)
    print(done.stdout[-20_000:], done.stderr[-5_000:])
    return done.stdout


def npm(folder: Path, *command: str) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    done = subprocess.run(["npm", *command], cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"npm {' '.join(command)} failed: {done.stderr[-500:]}")


@pytest.mark.parametrize(("streamed", "kinds"), [(False, '["responses", "chat"]'), (True, '["chat"]')], ids=["whole", "streamed"])
def test_compatibility(server, tmp_path, streamed, kinds):
    """openai/gpt-oss' compatibility-test: each of 30 tasks calls its tool with the arguments that the suite expects, through either API.

    Streamed, the suite looks for events of /v1/responses where its own client has none: no server can pass that half.
    """
    folder = tmp_path / "suite"
    shutil.copytree(checkout("GPT_OSS") / "compatibility-test", folder, ignore=shutil.ignore_patterns("node_modules", "*_vllm_*"))
    npm(folder, "ci")
    npm(folder, "install", "--no-save", "tsx")
    providers = folder / "providers.ts"
    text = re.sub(r'apiBaseUrl: "[^"]*"', f'apiBaseUrl: "{server.url}"', providers.read_text())
    providers.write_text(re.sub(r"apiType: \[[^]]*\]", f"apiType: {kinds}", text))
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines() if line.strip()]
    calls = {case["input"]: (case["tool_name"], case["expected_arguments"]) for case in cases}

    def say(messages: list[Heard]) -> str:
        if messages[-1].author.startswith("functions."):
            return turn(thought="That is what was asked for.", answer="Here it is.")
        return turn(thought="There is a tool for it.", calls=[calls[messages[-1].text]])

    server.otherwise = say
    out = run(["node_modules/.bin/tsx", "index.ts", "--provider", "vllm", "-k", "1", *(["--streaming"] if streamed else [])], folder)
    [path] = folder.glob("analysis_vllm_*.json")
    found = json.loads(path.read_text())
    assert found["totalTasks"] == len(cases) * (1 if streamed else 2), out
    assert (found["passHatK"], found["wrongInputToolCalls"], found["invalidByApiType"]) == (1, 0, {}), found


def test_endpoints(server, tmp_path):
    """openai/gpt-oss' tests/test_api_endpoints.py, which talks to the server in place of its own."""
    for name in ("conftest.py", "test_api_endpoints.py"):
        shutil.copy(checkout("GPT_OSS") / "tests" / name, tmp_path)
    (tmp_path / "stand_ins.py").write_text(ENDPOINTS)
    server.otherwise = lambda messages: turn(thought="Hm.", answer="Test response")
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "stand_ins", "-p", "no:cacheprovider", "."]
    out = run([*command, "-k", " and ".join(f"not {name}" for name in WANT_422)], tmp_path, PYTHONPATH=str(tmp_path), SERVER=root(server))
    assert re.search(r"^19 passed, 2 deselected", out, re.MULTILINE), out


def root(server) -> str:
    return server.url.removesuffix("/v1")


# What needs a socket, images or /v1/responses/compact; and one that wants the names of raw reasoning's events other than OpenAI has them.
REACHABLE = ["basic-response", "assistant-phase", "response-output-phase-schema", "system-prompt", "tool-calling", "multi-turn"]
CONTRADICTS = ["streaming-response"]


def test_open_responses(server, tmp_path):
    folder = tmp_path / "suite"
    folder.mkdir()
    for name in ("src/lib", "src/generated", "bin"):
        shutil.copytree(checkout("OPEN_RESPONSES") / name, folder / name)
    (folder / "package.json").write_text('{"type": "module"}')
    npm(folder, "install", "--no-save", "bun", "zod@3")
    server.says["What's the weather like in San Francisco?"] = turn(thought="A tool.", calls=[("get_weather", '{"location": "here"}')])
    server.otherwise = lambda messages: turn(thought="Hm.", answer="Well.")
    command = ["node_modules/.bin/bun", "run", "bin/compliance-test.ts", "-u", server.url, "-k", "x", "-m", "nano", "--json"]
    found = {one["id"]: one for one in json.loads(run([*command, "--filter", ",".join(REACHABLE + CONTRADICTS)], folder))["results"]}
    assert {name: found[name]["status"] for name in REACHABLE} == dict.fromkeys(REACHABLE, "passed"), found
    failed = [re.match(r"Event validation failed for ([\w.]+)", error) for error in found[CONTRADICTS[0]]["errors"]]
    assert all(failed) and {one[1] for one in failed} == {"response.reasoning_text.delta", "response.reasoning_text.done"}, found
