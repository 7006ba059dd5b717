"""The door is light: what is imported, and what a second start of the terminal does not do again."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]
# Libraries that not every answer needs. They are imported in the function that needs them, or by rooms that are imported so.
LATE = (
    *("jax.experimental.mosaic", "jax.experimental.pallas", "orbax", "tensorstore", "llguidance", "jsonschema", "huggingface_hub"),
    *("tiktoken", "regex", "matplotlib", "scipy", "chex", "optax"),
)
PRINT = "import json, sys; print(json.dumps(sorted(sys.modules)))"
CHAT = """
import sys
from gptoss_jax import chat
sys.argv = ["chat", "What is 27 + 58?", f"--compilation_cache={sys.argv[1]}"]
try:
    chat.run()
finally:
    LAST
""".replace("LAST", PRINT)


def modules(code: str, *arguments: str) -> tuple[list[str], str]:
    """What a process has imported when it ends, and what it printed before."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    printed, _, found = done.stdout.rstrip("\n").rpartition("\n")
    return json.loads(found), printed


def among(found: list[str], names: tuple[str, ...]) -> set[str]:
    return {name for name in names if any(module == name or module.startswith(f"{name}.") for module in found)}


def test_importing_the_package_imports_no_library():
    found, _ = modules(f"import gptoss_jax; {PRINT}")
    assert not among(found, (*LATE, "jax", "numpy", "flax", "absl", "openai_harmony"))
    assert [name for name in found if name.startswith("gptoss_jax")] == ["gptoss_jax"]


def test_an_llm_needs_little_more_than_jax():
    found, _ = modules(f"import gptoss_jax; gptoss_jax.LLM; {PRINT}")
    assert not among(found, (*LATE, "sentencepiece"))


def test_whoever_knows_no_jax_needs_none():
    """Messages to ids and back, options, and what a batch of lines asks for."""
    for room in ("harmony", "grammar", "sampling.options", "turns.tasks", "weights.locate", "batch.lines"):
        assert not among(modules(f"import gptoss_jax.{room}; {PRINT}")[0], ("jax",)), room


def test_flags_are_read_before_jax_is_imported():
    found, printed = modules(f"from gptoss_jax import chat; {PRINT}")
    assert not among(found, ("jax", "flax")) and not printed


def test_a_second_start_imports_and_traces_less(tmp_path):
    """The first one traces, and so needs what checks shapes; the second needs nothing of that, and says the same."""
    first, answer = modules(CHAT, str(tmp_path / "cache"))
    assert answer.endswith("27 + 58 = 85") and "chex" in among(first, LATE)
    second, again = modules(CHAT, str(tmp_path / "cache"))
    assert again == answer and not among(second, LATE)


def test_every_public_name_is_there():
    import gptoss_jax

    assert set(gptoss_jax.__all__) == set(dir(gptoss_jax)) and len(gptoss_jax.__all__) > 20
    assert all(getattr(gptoss_jax, name) is not None for name in gptoss_jax.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gptoss_jax.no_such_name


@pytest.mark.thorough
@pytest.mark.parametrize("program", ["chat", "batch", "serve"])
def test_help_shows_the_flags_that_programs_share(program):
    shown = subprocess.run([sys.executable, "-m", f"gptoss_jax.{program}", "--help"], capture_output=True, text=True, timeout=300).stdout
    assert {"--mesh:", "--checkpoint:", "--experts:", "--temperature:"} <= {*shown.split()}
