"""The recipe for Ray Data in docs/ is a program that runs."""

import json
from pathlib import Path
import re
import subprocess
import sys

import pytest

RECIPE = Path(__file__).parents[2] / "docs" / "ray_data.md"


@pytest.mark.slow
def test_the_recipe_answers(tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    program = tmp_path / "pipeline.py"
    program.write_text(re.search(r"```python\n(.*?)```", RECIPE.read_text(), re.S)[1])
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "answers")], capture_output=True, text=True, cwd=RECIPE.parent.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for path in (tmp_path / "answers").glob("*.json") for line in path.read_text().splitlines()]
    answers = {row["question"]: row["answer"] for row in rows}
    assert len(rows) == 12 and not any(row["error"] for row in rows)
    assert answers["What is 25 + 4?"] == "25 + 4 = 29"
