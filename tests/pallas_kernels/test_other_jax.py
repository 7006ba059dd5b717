"""The kernels on the oldest jax that is supported; all other tests run on the newest, which pyproject.toml pins for uv."""

import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]
OLDEST = "0.11.2"
PARTS = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt")
# The pins are the project's environment's; what `--with` names is laid over it. By hand (`pytest` alone would run below it):
#   uv run --isolated --extra test --with jax==0.11.2 --with jaxlib==0.11.2 --with jax-cuda13-plugin==0.11.2 \
#       --with jax-cuda13-pjrt==0.11.2 python -m pytest -m 'not slow' tests/pallas_kernels
COMMAND = ("uv", "run", "--isolated", "--python", sys.executable, "--extra", "test", *(f"--with={part}=={OLDEST}" for part in PARTS))


@pytest.mark.slow  # it downloads another jax, and takes as long as all tests of the kernels
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv, which installs another jax beside this one, is not on the path")
def test_kernels_on_the_oldest_jax():
    tests = ["tests/pallas_kernels", "tests/model/test_launches.py", "tests/model/test_fused.py", "-m", "not slow"]
    check = f"import jax, pytest, sys; assert jax.__version__ == {OLDEST!r}, jax.__version__; sys.exit(pytest.main(sys.argv[1:]))"
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "JAX_COMPILATION_CACHE"))}
    done = subprocess.run([*COMMAND, "python", "-c", check, *tests], cwd=ROOT, env=ours, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
