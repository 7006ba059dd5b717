"""OpenAI's codex, an agent that asks /v1/responses: it runs a command, reads what came of it, and answers; `npm install @openai/codex`.

    CODEX=node_modules/.bin/codex pytest -m slow -n 0 tests/clients/test_codex.py

The model says what a script says: nano knows nothing of shells.
"""

import json
import os
from pathlib import Path
import shutil
import subprocess

import pytest
from replaying import Heard, turn
from serving import serve

from gptoss_jax import LLM

pytestmark = pytest.mark.slow

CONTEXT = 1 << 16  # codex' instructions and tools are 10,000 tokens of gpt-oss', and twice as many of nano's
CONFIG = """
model = "nano"
model_provider = "local"

[model_providers.local]
name = "local"
base_url = "{url}"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
SCHEMA = {"type": "object", "properties": {"files": {"type": "integer"}}, "required": ["files"], "additionalProperties": False}


@pytest.fixture(scope="module")
def server():
    with serve(LLM("nano", slots=2, context=CONTEXT, cache_tokens=2 * CONTEXT)) as served:
        yield served


@pytest.fixture
def codex(server, tmp_path):
    """Runs `codex exec`, and returns the items that it says were completed."""
    program = os.environ.get("CODEX") or shutil.which("codex")
    if program is None:
        pytest.skip("CODEX must name codex' program, or it must be on the path; see the top of this file")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir(), work.mkdir()
    (work / "a.txt").write_text("one"), (work / "b.txt").write_text("two")
    (home / "config.toml").write_text(CONFIG.format(url=server.url))
    server.says, server.heard = {}, []

    def run(prompt: str, *more: str) -> list[dict]:
        command = [Path(program).absolute(), "exec", "--skip-git-repo-check", "--json", "-s", "read-only", *more, prompt]
        environment = os.environ | {"CODEX_HOME": str(home)}
        done = subprocess.run(command, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        print(done.stdout, done.stderr[-3_000:])
        assert done.returncode == 0 and events[-1]["type"] == "turn.completed", done.stderr[-1_000:]
        assert events[-1]["usage"]["output_tokens"] > 0
        return [event["item"] for event in events if event["type"] == "item.completed"]

    return run


def test_a_task_with_a_command(codex, server):
    """Two requests: the second holds the call and what the command printed."""
    server.otherwise = _lists_the_files
    items = codex("How many files are here?")
    kinds = [item["type"] for item in items]
    assert "command_execution" in kinds and kinds[-1] == "agent_message", items
    command = next(item for item in items if item["type"] == "command_execution")
    assert "a.txt" in command["aggregated_output"] and command["exit_code"] == 0
    assert items[-1]["text"] == "There are two files."
    asked, answered = [heard for heard in server.heard if any(one.author == "user" and "How many files" in one.text for one in heard)]
    assert len(answered) > len(asked)
    said = [(one.author, one.channel) for one in answered]
    assert ("assistant", "analysis") in said, "reasoning before a call is kept"


def test_an_answer_in_a_form(codex, server, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    server.otherwise = lambda messages: turn(thought="Two.", answer='{"files": 2}')
    items = codex("How many files are here?", "--ephemeral", "--output-schema", str(tmp_path / "schema.json"))
    assert json.loads(items[-1]["text"]) == {"files": 2}


def test_a_second_turn(codex, server):
    server.otherwise = _lists_the_files
    codex("How many files are here?")
    server.says["And now?"] = turn(thought="The same.", answer="Still two.")
    assert codex("And now?", "resume", "--last")[-1]["text"] == "Still two."
    texts = [one.text for one in server.heard[-1]]
    assert any("How many files" in text for text in texts) and any(text == "There are two files." for text in texts)


def _lists_the_files(messages: list[Heard]) -> str:
    last = messages[-1]
    if last.author.startswith("functions."):
        return turn(thought="a and b.", answer="There are two files.")
    told = "".join(one.text for one in messages if one.author in ("developer", "system"))
    if "type exec_command" in told:
        return turn(thought="I look.", said="I list the files.", calls=[("exec_command", '{"cmd": "ls"}')])
    return turn(thought="I look.", said="I list the files.", calls=[("shell", '{"command": ["ls"]}')])
