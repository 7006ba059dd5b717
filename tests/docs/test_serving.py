"""The examples of docs/serving.md are run, against one server that was started as the page says; those of codex and lm-eval where they are.

pytest -m slow -n 0 tests/docs/test_serving.py         # with codex (npm install @openai/codex) and lm-eval ('lm-eval[api]') on the path
"""

from collections.abc import Iterator
import doctest
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import httpx
import pytest
from server_process import served

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"
WRITTEN = "http://127.0.0.1:8000"  # the address of all examples
SUMS = [(40, 45), (27, 58), (8, 5)]


def blocks(language: str, heading: str | None = None) -> list[str]:
    """The blocks of a language, of one section if its heading is named."""
    text = PAGE.read_text(encoding="utf-8")
    if heading is not None:
        text = re.split(r"^## ", text.split(f"## {heading}\n")[1], flags=re.M)[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = re.search(r"^    uv run --extra serve python -m (\S+) ", PAGE.read_text(), re.M)[1]
    assert command == "gptoss_jax.serve"
    with served() as server:
        yield server.url


@pytest.mark.thorough
def test_python(address):
    """All blocks are one session."""
    text = "\n\n".join(blocks("python")).replace(WRITTEN, address)
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(examples.examples) > 25
    report: list[str] = []
    try:
        assert doctest.DocTestRunner(verbose=False).run(examples, out=report.append, clear_globs=False).failed == 0, "".join(report)
    finally:
        if "client" in examples.globs:
            examples.globs["client"].close()


@pytest.mark.thorough
def test_shell(address, tmp_path):
    """Commands print what stands below them; "..." is anything."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    compare = doctest.OutputChecker().check_output
    for block in blocks("console"):
        for command, shown in re.findall(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", block, re.M):
            command = re.sub(r"^> ", "", command, flags=re.M).replace(WRITTEN, address)
            environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, env=environment)
            said = done.stdout.rstrip("\n") + "\n"
            assert done.returncode == 0 and compare(shown.rstrip("\n") + "\n", said, doctest.ELLIPSIS), f"{command}\n{said}\n{done.stderr}"


@pytest.mark.slow
def test_codex(tmp_path):
    if shutil.which("codex") is None:
        pytest.skip("codex is not on the path; npm install @openai/codex")
    [config], [command] = blocks("toml", "codex"), blocks("bash", "codex")
    with served("--context=65536", "--slots=2") as server:  # nano's vocabulary makes twice as many tokens of it
        (tmp_path / "config.toml").write_text(config.replace(WRITTEN, server.url))
        environment = os.environ | {"CODEX_HOME": str(tmp_path)}
        command = command.replace("codex exec", "codex exec --json")
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=900, env=environment, cwd=tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and events[-1]["type"] == "turn.completed", done.stdout + done.stderr
    assert events[-1]["usage"]["output_tokens"] > 0


@pytest.mark.slow
def test_lm_eval(address, tmp_path):
    """Both ways: nano can do these sums; the log-probabilities that are compared are those of the server."""
    if shutil.which("lm-eval") is None:
        pytest.skip("lm-eval is not on the path; pip install 'lm-eval[api]'")
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in SUMS))
    (asked, compared), commands = blocks("yaml", "lm-eval"), blocks("bash", "lm-eval")
    assert len(commands) == 2
    [told, _] = [_evaluated(*one, address, tmp_path) for one in zip((asked, compared), commands, strict=True)]
    assert json.loads(told[0].read_text())["results"]["sums"]["exact_match,none"] == 1.0
    [_, found] = sorted((tmp_path / "choices").rglob("*.json*"))
    sample = json.loads(found.read_text().splitlines()[0])
    ask = lambda path, body: httpx.post(address + path, json=body, timeout=300).json()
    ids = lambda text: ask("/tokenize", {"prompt": text})["tokens"]
    before = ids("40 + 45 =")
    prompts = [before + ids(f"40 + 45 = {answer}")[len(before) :] for answer in (85, 86)]  # as lm-eval cuts, whatever the vocabulary
    scored = ask("/v1/completions", {"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 0})["choices"]
    expected = [sum(choice["logprobs"]["token_logprobs"][len(before) :]) for choice in scored]
    assert [float(one[0][0]) for one in sample["resps"]] == pytest.approx(expected, rel=1e-3)


def _evaluated(task: str, command: str, address: str, folder: Path) -> list[Path]:
    """Runs lm-eval on a task: the files of its results and of its samples."""
    name = re.match(r"task: (\w+)", task)[1]
    (folder / f"{name}.yaml").write_text(task)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OPENAI_API_KEY": "none"}
    command = command.replace(WRITTEN, address).rstrip("\n") + f" --log_samples --output_path {folder}/{name}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=900, env=environment, cwd=folder)
    files = sorted((folder / name).rglob("*.json*"))
    assert done.returncode == 0 and len(files) == 2, done.stdout + done.stderr
    return files
