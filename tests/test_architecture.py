"""The layering of the code, read from its imports: what may know what, and where the few impure things may happen."""

import ast
from collections.abc import Iterator
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each wing, or file beside the wings, may import of the others. A new one is written below all that it imports: there is no way up.
MAY_IMPORT = {
    "quoting": "",
    "keywords": "",
    "strict_json": "",
    "bars": "",
    "config": "strict_json",
    "tokenizer": "",
    "compile_cache": "",
    "model_flags": "",
    "parallel": "config",
    "model": "config parallel",
    "sampling": "keywords parallel",
    "engine": "bars config parallel model sampling",
    "weights": "bars config tokenizer parallel model",
    "adapters": "config parallel model weights",
    "research": "config tokenizer parallel model sampling engine weights",
    "schemas": "",
    "harmony": "strict_json tokenizer schemas",
    "grammar": "tokenizer schemas harmony",
    "turns": "keywords tokenizer sampling engine harmony grammar",
    "openai": "strict_json tokenizer sampling harmony turns",
    "llm": "tokenizer model sampling engine weights adapters research harmony turns",
    "batch": "strict_json bars compile_cache model_flags parallel sampling weights turns openai llm",
    "serve": "strict_json compile_cache model_flags parallel sampling weights adapters engine turns openai llm",
    "chat": "strict_json compile_cache model_flags parallel sampling weights harmony turns llm",
    "plan": "config parallel model sampling engine",
}
EVERY_WING_MAY = {"quoting"}  # errors quote the caller's values everywhere; it needs no place in the lines above
KERNELS = {"model", "engine", "weights", "adapters", "plan"}  # wings that may call them
JAX = {"jax", "jaxlib", "flax", "chex", "optax", "orbax"}
NO_JAX = (
    "quoting", "keywords", "strict_json", "config", "tokenizer", "sampling.options", "sampling.ids", "engine.requests",
    "engine.scheduling.live", "engine.scheduling.pages", "engine.scheduling.adapters", "engine.scheduling.prompt_routes",
    "engine.scheduling.turns", "engine.metrics", "engine.hooks", "model.sites", "weights.locate", "weights.safetensors", "schemas",
    "harmony", "grammar", "turns", "openai", "serve.app", "serve.endpoints", "serve.connections", "model_flags",
)  # fmt: skip
SEE_MESSAGES_AND_ARRAYS = {"llm", "llm.llm", "llm.asking", "llm.adapting", "llm.living", "chat", "batch.__main__", "serve.__main__"}
JITS = {
    "gptoss_jax.engine.device.decode", "gptoss_jax.engine.device.scored", "gptoss_jax.engine.device.lowered",
    "gptoss_jax.engine.device.terms", "gptoss_jax.research.patching.running", "gptoss_jax.weights.forms", "gptoss_jax.weights.placing",
    "pallas_kernels.dispatch", "pallas_kernels.aot", "pallas_kernels.bench.measure", "pallas_kernels.predict.cases",
    "pallas_kernels.emulator.capture", "pallas_kernels.emulator.examine",
}  # fmt: skip
ENTRY_POINTS = {
    "gptoss_jax.batch.__main__", "gptoss_jax.batch.merge",
    "gptoss_jax.chat", "gptoss_jax.serve.__main__", "gptoss_jax.model_flags", "gptoss_jax.parallel.launch", "gptoss_jax.plan.__main__",
    "pallas_kernels.aot.__main__", "pallas_kernels.bench.__main__", "pallas_kernels.check.__main__", "pallas_kernels.check.child",
    "pallas_kernels.emulator.__main__", "pallas_kernels.emulator.true_shapes", "pallas_kernels.predict.__main__",
}  # fmt: skip
ENVIRONMENT = "pallas_kernels.aot.environment"  # tells Mosaic GPU where to dump; there is no other way
ASK_FOR_DEVICES = {"pallas_kernels.dispatch", "pallas_kernels.emulator.capture"}  # the emulator runs on a CPU, whatever is there
PRIVATE = {"pallas_kernels.hopper", "pallas_kernels.mxfp4.dequantize", "pallas_kernels.emulator.private"}


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


def without_prefix(module: str) -> str:
    """A module's name within gptoss_jax; "" for the package itself and for modules of others."""
    return module.removeprefix("gptoss_jax.") if module.startswith("gptoss_jax.") else ""


def ours(module: str) -> set[str]:
    """Imports of gptoss_jax, without that prefix."""
    return {without_prefix(name) for name in imports(module) if without_prefix(name)}


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
    assert {"gptoss_jax.engine.device.decode", "gptoss_jax.model.transformer", "pallas_kernels.moe.reference"} <= MODULES.keys()


@every_module
def test_packages_import_nothing_that_is_built_on_them(module):
    assert not tops(imports(module)) & {"checkpoints", "tests", "notebooks", "benchmarks"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("pallas_kernels")])
def test_kernels_know_nothing_of_gpt_oss(module):
    assert "gptoss_jax" not in tops(imports(module))
    ask = ("jax.devices", "jax.local_devices", "jax.default_backend", "jax.extend.backend.get_default_device")
    asks = [(line, name) for line, name in names_used(module) if name in ask]
    assert not asks or module in ASK_FOR_DEVICES, "a kernel that asks for devices cannot be compiled for one that is not there"
    private = [name for name in imports(module) if name.startswith("jax._src")]
    assert not private or module in PRIVATE, "private parts of jax are named in one place"


def wing(name: str) -> str:
    """The folder of a module of gptoss_jax, or the file beside the folders: the first word of its name."""
    return name.partition(".")[0]


def test_every_wing_has_a_place_above_what_imports_it():
    found = {wing(name) for name in map(without_prefix, MODULES) if name}
    assert found == MAY_IMPORT.keys(), "give each new wing a line in MAY_IMPORT"
    for number, (name, others) in enumerate(MAY_IMPORT.items()):
        later = set(others.split()) - set(list(MAY_IMPORT)[:number])
        assert not later, f"{name} may import only wings that stand above it in MAY_IMPORT; {later} do not"
        unused = set(others.split()) - {wing(to) for module in MODULES if wing(without_prefix(module)) == name for to in ours(module)}
        assert not unused, f"{name} imports nothing of {unused}: take it out of MAY_IMPORT"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("gptoss_jax.")])
def test_a_wing_imports_only_what_it_may(module):
    own = wing(without_prefix(module))
    may = {own, *MAY_IMPORT[own].split(), *EVERY_WING_MAY}
    for name in ours(module):
        assert wing(name) in may, (
            f"{module} imports gptoss_jax.{name}, but `{own}` may import only {', '.join(sorted(may - {own}))}; "
            f"move what it needs down, or what needs it up."
        )
    if "pallas_kernels" in tops(imports(module)):
        assert own in KERNELS, f"{module} imports pallas_kernels, but only {', '.join(sorted(KERNELS))} may; call the model instead."


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: {name for name in imports(module) if name in MODULES and name != module} for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", [m for m in MODULES if without_prefix(m).startswith(NO_JAX)])
def test_some_rooms_know_no_jax(module):
    assert not tops(everything_below(module)) & (JAX | {"pallas_kernels"})


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("gptoss_jax.model")])
def test_model_knows_no_text_and_no_files(module):
    assert tops(imports(module)) & {"openai_harmony", "tiktoken", "sentencepiece", "safetensors"} == set()


@pytest.mark.parametrize("module", ["gptoss_jax.engine.device.decode", "gptoss_jax.engine.engine"])
def test_generation_knows_token_ids_only(module):
    below = everything_below(module)
    text = tuple(f"gptoss_jax.{name}" for name in ("tokenizer", "harmony", "grammar", "turns", "weights"))
    assert not {name for name in below if name.startswith(text)}


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


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("gptoss_jax.")])
def test_errors_quote_values_briefly(module):
    raised = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Raise)]
    whole = [one.lineno for node in raised for one in ast.walk(node) if isinstance(one, ast.FormattedValue) and one.conversion == ord("r")]
    assert not whole, "a value may be deep or huge: say it by `quoting.quoted`, not by !r"


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
