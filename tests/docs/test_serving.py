"""The examples of docs/serving.md are run, against one server that was started as the page says; those of codex and lm-eval where they are.

pytest -m slow -n 0 tests/docs/test_serving.py         # with codex (npm install @openai/codex) and lm-eval ('lm-eval[api]') on the path
"""

from collections.abc import Iterator
import contextlib
import doctest
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import pytest

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


@contextlib.contextmanager
def started(folder: Path, *flags: str) -> Iterator[str]:
    """The page's first command, on a port that is free: the address that it prints. What it says is kept in a file of the folder."""
    command = re.search(r"^    uv run --extra serve python (-m gptoss_jax\.serve)\b", PAGE.read_text(), re.M)[1]
    words = [sys.executable, *shlex.split(command), "--port=0", *flags]
    found, printed = [], threading.Event()
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)

    def listen() -> None:
        for line in server.stdout:
            found.extend(re.findall(r"http://127\.0\.0\.1:\d+", line))
            if found:
                printed.set()
        printed.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        assert printed.wait(300) and found, (folder / "server.log").read_text()
        yield found[0]
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        finally:
            server.kill()
            server.stdout.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("server")) as address:
        yield address


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
    with started(tmp_path, "--context=65536", "--slots=2") as address:  # nano's vocabulary makes twice as many tokens of it
        (tmp_path / "config.toml").write_text(config.replace(WRITTEN, address))
        environment = os.environ | {"CODEX_HOME": str(tmp_path)}
        command = command.replace("codex exec", "codex exec --json")
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=900, env=environment, cwd=tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and events[-1]["type"] == "turn.completed", done.stdout + done.stderr
    assert events[-1]["usage"]["output_tokens"] > 0


@pytest.mark.slow
def test_lm_eval(address, tmp_path):
    """Both ways: nano can do these sums, and finds the right ones more probable than the wrong ones."""
    if shutil.which("lm-eval") is None:
        pytest.skip("lm-eval is not on the path; pip install 'lm-eval[api]'")
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in SUMS))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "none"}
    tasks, commands = blocks("yaml", "lm-eval"), blocks("bash", "lm-eval")
    assert len(tasks) == len(commands) == 2
    for task, command, metric in zip(tasks, commands, ("exact_match,none", "acc,none"), strict=True):
        name = re.match(r"task: (\w+)", task)[1]
        (tmp_path / f"{name}.yaml").write_text(task)
        command = command.replace(WRITTEN, address).rstrip("\n") + f" --output_path {tmp_path}/{name}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=900, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        [results] = (tmp_path / name).rglob("results*.json")
        assert json.loads(results.read_text())["results"][name][metric] == 1.0, done.stdout
