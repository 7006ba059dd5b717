"""The README is a door: short, its examples and its first command run as they stand, its map names every room and no other."""

from pathlib import Path
import re
import shlex
import subprocess
import sys

from examples import run_examples
import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.mark.parametrize("name, most", [("README.md", 180), ("CONTRIBUTING.md", 60)])
def test_it_is_short(name, most):
    """What is longer belongs on a page of docs/."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= most
    assert not [line for line in lines if len(line) > 140]


def test_examples():
    run_examples(README)


def test_first_command(tmp_path):
    command = re.search(r"^    uv run (python -m gptoss_jax\.chat .*?)(?: +#.*)?$", README.read_text(), re.M)[1]
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *words[1:], f"--compilation_cache={tmp_path}"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("85")
    assert any(tmp_path.iterdir()), "compiled programs were not kept"


def test_every_guide_is_linked():
    """The README says where everything is."""
    linked = set(re.findall(r"\]\(docs/(\w+\.md)", README.read_text(encoding="utf-8")))
    assert linked >= {path.name for path in (ROOT / "docs").glob("*.md")}


def on_the_map() -> list[str]:
    """The paths that the map names: at the beginning of its lines, two blanks apart, those of a folder two blanks further in."""
    tree = README.read_text(encoding="utf-8").split("## Map of the code")[1].split("```")[1]
    paths, folder = [], ""
    for line in tree.strip("\n").splitlines():
        indent = len(line) - len(line.lstrip())
        if indent > 2:  # a description goes on
            continue
        words = re.split(r" {2,}", line.strip())
        names = [word for i, word in enumerate(words) if i == 0 or re.fullmatch(r"\w+(/|\.\w+)", word)]
        folder = "" if indent == 0 else folder
        paths += [folder + name for name in names]
        folder = names[0] if indent == 0 else folder
    return paths


def test_every_room_is_on_the_map():
    """The wings of gptoss_jax with the files beside them, and the folders of pallas_kernels."""
    package, kernels = ROOT / "gptoss_jax", ROOT / "pallas_kernels"
    rooms = [f"gptoss_jax/{path.name}" for path in package.glob("*.py") if path.name != "__init__.py"]
    rooms += [f"gptoss_jax/{path.parent.name}/" for path in package.glob("*/__init__.py")]
    rooms += [f"pallas_kernels/{path.name}/" for path in kernels.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(rooms) > 20
    missing = sorted(set(rooms) - set(on_the_map()))
    assert not missing


def test_what_the_map_names_is_there():
    absent = [path for path in on_the_map() if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())]
    assert not absent
