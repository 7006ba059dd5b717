"""What the README shows is run: its examples as they stand, its first command in a fresh process."""

import json
from pathlib import Path
import re
import shlex
import subprocess
import sys

from examples import run_examples

from checkpoints.nano_evaluation import table

README = Path(__file__).parents[2] / "README.md"


def test_examples():
    run_examples(README)


def test_first_command(tmp_path):
    command = re.search(r"^    uv run (python -m gptoss_jax\.chat .*?)(?: +#.*)?$", README.read_text(), re.M)[1]
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *words[1:], f"--compilation_cache={tmp_path}"], capture_output=True, text=True, cwd=README.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("85")
    assert any(tmp_path.iterdir()), "compiled programs were not kept"


def test_the_batch_job_writes_what_is_shown(tmp_path):
    text = README.read_text()
    words = shlex.split(re.search(r"^    (python -m gptoss_jax\.batch --input=checkpoints/examples.*)$", text, re.M)[1])
    output = tmp_path / "results.jsonl"
    arguments = [f"--output={output}" if word.startswith("--output") else word for word in words[1:]]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=README.parent, check=False)
    assert done.returncode == 0, done.stderr
    shown = re.search(r"lines of `results.jsonl` are\n\n```json\n(.*?)\n```", text, re.S)[1].splitlines()
    assert len(shown) == 3 and set(shown) <= set(output.read_text().splitlines())
    assert re.search(r"results.jsonl: (9 of 9 .* out);", text)[1] in done.stderr + done.stdout


def test_every_room_is_on_the_map():
    tree = README.read_text().split("## Map of the code")[1].split("```")[1]
    package = README.parent / "gptoss_jax"
    rooms = [path.name for path in package.rglob("*.py") if path.name != "__init__.py" and path.parent.name != "harmony"]
    rooms += [path.name + "/" for path in (README.parent / "pallas_kernels").iterdir() if (path / "__init__.py").is_file()]
    missing = [room for room in rooms if room not in tree]
    assert not missing
    named = re.findall(r"[\w/]+\.py", tree)
    absent = [name for name in named if not any(path.name == name for path in README.parent.rglob("*.py"))]
    assert not absent


def test_stated_accuracies_are_the_evaluated_ones():
    stated = json.loads((README.parent / "checkpoints" / "nano" / "accuracies.json").read_text())
    assert table(stated["accuracies"]) in README.read_text()
