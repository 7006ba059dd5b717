"""What a kept program is named by: all that made it. Two engines share programs where nothing tells them apart."""

import functools
from pathlib import Path
import re
import shutil

import jax
from mixed_requests import CONTEXT, PAGE, SLOTS, make
from on_meshes import model
import pytest
from small_model import small_model

from gptoss_jax.engine.device import lowered
from gptoss_jax.engine.engine import Engine
from gptoss_jax.model import layers, transformer
from gptoss_jax.sampling import draw


def keys(**options) -> list[str]:
    """Names of the files of an engine's programs."""
    return [program.key for program in of(make(**options))]


def of(engine) -> list[lowered._Program]:
    state = engine.programs._state = engine.programs.empty_state()
    calls = engine.programs._calls().values()
    return [lowered._Program(*call[:3], donated=state, result=call[3]) for call in calls]


@pytest.mark.parametrize(
    "change, others",
    [
        ({"slots": 2}, 3),
        ({"chunk": 16}, 1),  # as many tokens are decoded at a time
        ({"context": 80}, 3),
        ({"cache_tokens": 256}, 3),
        ({"cache_dtype": "float8_e4m3fn"}, 3),
        ({"routed_experts": True}, 2),  # places a request as ever
        ({"prefix_reuse": False}, 0),  # a matter of the host
    ],
)
def test_another_engine_has_programs_of_its_own(change, others):
    assert sum(one != other for one, other in zip(keys(), keys(**change), strict=True)) == others


def test_a_model_on_another_device_has_the_same_programs():
    there = jax.device_put(small_model().params, jax.devices()[3])
    engine = Engine(there, small_model().config, eos_token_ids=(319,), slots=SLOTS, context=CONTEXT, chunk=32, page=PAGE)
    assert [program.key for program in of(engine)] == keys()


@pytest.mark.parametrize("what", ["source", "jax", "jaxlib", "flag", "weights' dtype", "weights' form", "mesh"])
def test_whatever_made_a_program_is_in_its_name(what, monkeypatch):
    before = keys()
    if what == "source":
        monkeypatch.setattr(lowered, "_source", lambda: "another")
    elif what in ("jax", "jaxlib"):
        monkeypatch.setattr(getattr(lowered, what), "__version__", "0.99")
    elif what == "flag":
        with jax.default_matmul_precision("highest"):
            assert not set(keys()) & set(before)
        assert keys() == before
        return
    elif what == "mesh":
        on = {shape: Engine(*on_mesh(shape), eos_token_ids=(319,), slots=4, context=96, chunk=32, page=16) for shape in ((2, 2), (1, 4))}
        assert not {program.key for program in of(on[2, 2])} & {program.key for program in of(on[1, 4])}
        return
    else:
        other = small_model(*({"weights' dtype": ("bfloat16", "stacked"), "weights' form": ("float32", "packed")}[what]))
        engine = Engine(other.params, other.config, eos_token_ids=(319,), slots=4, context=96, chunk=32, page=16)
        assert [program.key for program in of(engine)][:2] != before[:2]
        return
    assert not set(keys()) & set(before)


def on_mesh(shape):
    loaded = model("tiny", shape=shape)
    return loaded.params, loaded.config


def test_the_source_is_that_of_both_packages(tmp_path, monkeypatch):
    """A changed line anywhere changes the digest."""
    before = lowered._source()
    for package in (Path(lowered.__file__).parents[2], Path(lowered.pallas_kernels.__file__).parent):
        copy = tmp_path / package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    changed = tmp_path / "pallas_kernels" / "moe" / "mosaic.py"
    whole = changed.read_text()
    changed.write_text(whole + "# another line")
    monkeypatch.setattr(lowered, "__file__", str(tmp_path / "gptoss_jax" / "engine" / "device" / "lowered.py"))
    monkeypatch.setattr(lowered.pallas_kernels, "__file__", str(tmp_path / "pallas_kernels" / "__init__.py"))
    assert lowered._source.__wrapped__() != before
    changed.write_text(whole)
    assert lowered._source.__wrapped__() == before


def test_whoever_replaces_a_function_or_a_constant_of_the_model_has_programs_of_his_own(monkeypatch):
    """And so has who edits a file that is imported already: what is loaded counts, and what is on the disk."""
    before = keys()
    for module, name, other in (
        (transformer, "rms_norm", lambda x, gain, eps: x),
        (draw, "MOST", 7),
        (layers, "embed_tokens", functools.partial(lambda x: x)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, other, raising=False)
            assert not set(keys()) & set(before)
        assert keys() == before


@pytest.mark.parametrize("number, name", [(0, "decode"), (1, "read"), (2, "place")])
def test_a_program_is_the_same_either_way(number, name):
    """What XLA makes of a kept program is what it makes of the function itself: the same instructions, memory and donations."""
    engine = make()
    program = of(engine)[number]
    function, arguments, options, _ = engine.programs._calls()[name]
    direct, kept = function.lower(*arguments, **options).compile(), program.call(program.lower()).compile()
    assert plain(direct.as_text()) == plain(kept.as_text())
    one, other = direct.memory_analysis(), kept.memory_analysis()
    assert one.alias_size_in_bytes == other.alias_size_in_bytes > 0
    assert one.temp_size_in_bytes == other.temp_size_in_bytes


def plain(text: str) -> list[str]:
    """A program's instructions, without names, numbers of arguments, and places in the source."""
    lines = [line for line in text.split("\n") if " parameter(" not in line and re.match(r"\s+(ROOT )?%?[\w.-]+ = ", line)]
    names = r"%[\w.-]+|\b(?:calls|to_apply|body|condition)=[^,)]*|, metadata=\{[^}]*\}|/\*index=\d+\*/|^ +(ROOT )?[\w.-]+ = "
    return sorted(re.sub(names, "", line) for line in lines)
