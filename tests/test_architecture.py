"""The layering of the code, read from its imports: what may know what, and where the few impure things may happen."""

import ast
from collections.abc import Iterator
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each module may import those of the lines above its own, and within `harmony`, `model`, `store` and `plan` those before it.
ORDER = """
config options tokenizer text compile_cache filters
harmony.conversation harmony.header harmony.parsed harmony.parse harmony.render harmony
grammar.schema grammar.formats grammar.vocabulary grammar.matcher grammar.constraint grammar.turn grammar
sharding processes
@MODEL
lenses plots shards
locate layouts sampling_state
sampling
routes
decode
forms
placing
store store.whole store.saving store.restoring
adapters.factors adapters.attaching adapters.files adapters
weights pages sizes requests
live scoring
scheduler programs exchange
engine
completion
reply
tasks
llm
launch
@BATCH
chat
plan plan.abstract plan.floor plan.setting plan.planning plan.__main__
"""
MODEL = """
params named cache hooks views layers rope attention moe fused transformer
"""
BATCH = """
batch files source journal fields replies openai_chat openai_responses requests results shards draining progress job merge __main__
"""
ORDER = ORDER.replace("@MODEL", " ".join([*(f"model.{name}" for name in MODEL.split()), "model"]))
ORDER = ORDER.replace("@BATCH", " ".join(name if name == "batch" else f"batch.{name}" for name in BATCH.split()))
JAX = {"jax", "jaxlib", "flax", "chex", "optax", "orbax"}
NO_JAX = ("config", "options", "tokenizer", "text", "locate", "harmony", "grammar", "pages", "requests", "live")
SEE_MESSAGES_AND_ARRAYS = {"llm", "chat", "batch.__main__"}
JITS = {
    "gptoss_jax.decode", "gptoss_jax.forms", "gptoss_jax.placing",
    "pallas_kernels.dispatch", "pallas_kernels.aot", "pallas_kernels.bench.measure",
}  # fmt: skip
ENTRY_POINTS = {
    "gptoss_jax.batch.__main__", "gptoss_jax.batch.merge",
    "gptoss_jax.chat", "gptoss_jax.launch", "gptoss_jax.plan.__main__", "pallas_kernels.aot.__main__", "pallas_kernels.bench.__main__",
}  # fmt: skip
ENVIRONMENT = "pallas_kernels.aot.environment"  # tells Mosaic GPU where to dump; there is no other way
PRIVATE = {"pallas_kernels.hopper", "pallas_kernels.mxfp4.dequantize"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for top in ("gptoss_jax", "pallas_kernels") for path in sorted((ROOT / top).rglob("*.py"))}
WORKSHOP = {name_of(path): path for path in sorted((ROOT / "checkpoints").rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


@functools.cache
def tree(module: str) -> ast.Module:
    path = MODULES.get(module) or WORKSHOP[module]
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Names of the modules that a module imports anywhere, in a function too."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively in line {node.lineno}; name the package"
            found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names}
    return frozenset(found)


def ours(module: str) -> set[str]:
    """Imports of gptoss_jax, without that prefix."""
    return {name.removeprefix("gptoss_jax.") for name in imports(module) if name.partition(".")[0] == "gptoss_jax"}


def everything_below(module: str) -> set[str]:
    seen, todo = set(), [module]
    while todo:
        for name in imports(todo.pop()) - seen:
            seen.add(name)
            todo += [name] if name in MODULES else []
    return seen


def tops(names) -> set[str]:
    return {name.partition(".")[0] for name in names}


def names_used(module: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module mentions, such as (12, "jax.jit")."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node)


def test_the_packages_were_found():
    assert {"gptoss_jax.decode", "gptoss_jax.model.transformer", "pallas_kernels.moe.reference"} <= MODULES.keys()


@every_module
def test_packages_import_nothing_that_is_built_on_them(module):
    assert not tops(imports(module)) & {"checkpoints", "tests", "notebooks", "benchmarks"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("pallas_kernels")])
def test_kernels_know_nothing_of_gpt_oss(module):
    assert "gptoss_jax" not in tops(imports(module))
    ask = ("jax.devices", "jax.local_devices", "jax.default_backend", "jax.extend.backend.get_default_device")
    asks = [(line, name) for line, name in names_used(module) if name in ask]
    assert not asks or module == "pallas_kernels.dispatch", "a kernel that asks for devices cannot be compiled for one that is not there"
    private = [name for name in imports(module) if name.startswith("jax._src")]
    assert not private or module in PRIVATE, "private parts of jax are named in one place"


def test_modules_import_downwards_only():
    levels = [line.split() for line in ORDER.split("\n") if line]
    rank = {}
    for number, names in enumerate(levels):
        for place, name in enumerate(names):
            inside = place if names[0].startswith(("harmony.", "grammar.", "model.", "store", "adapters", "batch", "plan")) else 0
            rank[name] = (number, inside)
    modules = {m.removeprefix("gptoss_jax.") for m in MODULES if m.startswith("gptoss_jax.")}
    assert modules == rank.keys(), "give each new module a place in ORDER"
    upwards = [(m, name) for m in modules for name in ours(f"gptoss_jax.{m}") if rank[name] >= rank[m]]
    assert not upwards


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("gptoss_jax.") and m.split(".")[1] in NO_JAX])
def test_text_modules_know_no_jax(module):
    assert not tops(everything_below(module)) & (JAX | {"pallas_kernels"})


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("gptoss_jax.model")])
def test_model_knows_only_config_sharding_and_kernels(module):
    assert all(name in ("config", "sharding") or name.startswith("model") for name in ours(module))
    assert tops(imports(module)) & {"openai_harmony", "tiktoken", "sentencepiece", "safetensors"} == set()


@pytest.mark.parametrize("module", ["gptoss_jax.decode", "gptoss_jax.engine"])
def test_generation_knows_token_ids_only(module):
    below = everything_below(module)
    assert not {n for n in below if n.startswith(("gptoss_jax.tokenizer", "gptoss_jax.harmony", "gptoss_jax.text", "gptoss_jax.weights"))}


def test_few_modules_see_both_messages_and_arrays():
    both = {
        name.removeprefix("gptoss_jax.")
        for name in MODULES
        if any(below.startswith("gptoss_jax.harmony") for below in everything_below(name)) and tops(everything_below(name)) & JAX
    }
    assert both - {"gptoss_jax"} == SEE_MESSAGES_AND_ARRAYS


@every_module
def test_jit_appears_in_named_places(module):
    jits = [(line, name) for line, name in names_used(module) if name in ("jax.jit", "jit", "jax.pmap", "pjit")]
    assert not jits or module in JITS


@every_module
def test_only_entry_points_print_and_read_flags_or_the_environment(module):
    impure = [(line, name) for line, name in names_used(module) if name in ("print", "os.environ", "os.getenv", "sys.argv", "input")]
    assert not impure or module in ENTRY_POINTS | {ENVIRONMENT}
    assert "absl" not in tops(imports(module)) or module in ENTRY_POINTS


@every_module
def test_no_assert_statement_guards_package_code(module):
    asserts = [node.lineno for node in ast.walk(tree(module)) if isinstance(node, ast.Assert)]
    assert not asserts, "raise ValueError: `python -O` drops asserts"


@pytest.mark.parametrize("module", [*MODULES, *WORKSHOP])
def test_files_and_functions_are_short(module):
    path = MODULES.get(module) or WORKSHOP[module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    functions = [node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno - node.lineno >= 70}
    assert not long


@pytest.mark.parametrize("module", [*MODULES, *WORKSHOP])
def test_modules_say_what_they_are(module):
    assert ast.get_docstring(tree(module)), "a module opens with what it is and what it must not know"
    assert not set(module.split(".")) & {"utils", "util", "common", "helpers", "misc"}
