"""Plans for GPUs that are not there: what they say is what was compiled, they add up, and what cannot be is refused first."""

import dataclasses
import json
import math
import sys

from absl import app, flags
import pytest

from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B
from gptoss_jax.engine.sizes import sizes
from gptoss_jax.model.params import expert_width
from gptoss_jax.plan import __main__ as entry
from gptoss_jax.plan import abstract, floor, planning
from gptoss_jax.plan.planning import Program, before_compiling, most_context, most_slots
from gptoss_jax.plan.setting import Setting, card, read_config
from pallas_kernels import aot
from pallas_kernels.aot.collectives import collectives
from pallas_kernels.bench.measure import Ceilings

needs_aot = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))
LAYERS, SLOTS, WIDTH = 2, 16, GPT_OSS_120B.hidden_size
SHALLOW = dataclasses.replace(GPT_OSS_120B, num_hidden_layers=LAYERS, layer_types=GPT_OSS_120B.layer_types[:LAYERS])


def run(*arguments: str) -> int | str:
    given = flags.FlagValues()
    entry.define_flags(given)
    given(["plan", *arguments])
    return entry.main([], given)


@pytest.fixture
def nothing_compiled(monkeypatch):
    """Programs are made up, all else is real."""
    program = Program(700, 50, 10**9, 10**9, 3 * 10**9, (planning.Collectives("all-reduce", ("f32[64,2880]",), 737280, "layer", 2.0),), 9.0)
    monkeypatch.setattr(planning, "_compiled", lambda *_: program)


@pytest.fixture
def shallow(tmp_path):
    """The config.json of a model of 120b's widths with few layers."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHALLOW.to_dict()))
    return path


@pytest.mark.thorough
@needs_aot
def test_what_was_compiled_is_what_the_tables_say(shallow, capsys):
    assert run(f"--model={shallow}", "--num_gpus=4", f"--slots={SLOTS}", "--context=4096", "--chunk=64", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    residual = SLOTS * WIDTH * 4
    assert told["decode"]["arguments"] == pytest.approx(told["decode"]["predicted"], rel=0.03)
    assert told["prefill"]["arguments"] < told["prefill"]["predicted"], "of the last layer only keys and values are computed"
    for program, sums, size in ((told["decode"], 2, residual), (told["prefill"], 2 - 2 / LAYERS, 64 * WIDTH * 4)):
        a_layer = [c for c in program["collectives"] if c["where"] == "layer"]
        assert sum(c["count"] for c in a_layer) == sums and {c["kind"] for c in a_layer} == {"all-reduce"}
        assert max(c["bytes"] for c in program["collectives"]) == size, program["collectives"]
        assert 8 * LAYERS < program["launches"] < 80 * LAYERS
    assert told["fits"] and max(told[name]["temporaries"] for name in ("decode", "prefill")) == told["memory"]["temporaries"] < 1e9
    held = sum(told["memory"][name] for name in ("weights", "cache", "sampling", "other", "temporaries"))
    assert told["memory"]["total"] == held == told["memory"]["usable"] - told["memory"]["headroom"]
    assert told["decode"]["arguments"] == pytest.approx(held - told["memory"]["temporaries"], rel=1e-3)


def total(setting: Setting, temporaries: float, **changes) -> float:
    return before_compiling(dataclasses.replace(setting, **changes)).total + temporaries


@pytest.mark.thorough
@pytest.mark.parametrize("gpus, data", [(1, 1), pytest.param(4, 1, marks=needs_aot), pytest.param(8, 2, marks=needs_aot)])
@pytest.mark.parametrize("temporaries", [10**8, 4 * 10**9])
def test_the_most_that_fits_fits_and_no_more(gpus, data, temporaries):
    setting = Setting(GPT_OSS_120B, "h100", gpus, data, slots=16, context=32768)
    memory = dataclasses.replace(before_compiling(setting), temporaries=temporaries)
    slots, context = most_slots(setting, memory), most_context(setting, memory)
    grown = lambda slots: temporaries * max(1, slots / setting.slots)
    assert slots > 0 and slots % data == 0
    assert total(setting, grown(slots), slots=slots) <= memory.usable < total(setting, grown(slots + data), slots=slots + data)
    assert context % 64 == 0 and total(setting, temporaries, context=context) <= memory.usable
    assert context == 131072 or total(setting, temporaries, context=context + 64) > memory.usable


@pytest.mark.thorough
def test_what_fits_nowhere_is_said(nothing_compiled, capsys):
    """120b on a GPU where weights and temporaries leave nothing."""
    made = planning.plan(Setting(GPT_OSS_120B, "h100", memory_fraction=0.8))
    assert not made.fits and made.most_slots == 0 and made.most_context == 0
    assert run("--model=gpt-oss-120b", "--memory_fraction=0.8") == 0
    assert "It does not fit" in capsys.readouterr().out


def test_memory_of_one_gpu_is_the_tables():
    """Of the cache 0.33 GB are the slot's own, the rest is for prompts that are read ahead."""
    memory = before_compiling(Setting(GPT_OSS_120B, "h100", slots=1, context=8192))
    assert memory.weights == pytest.approx(65.4e9, rel=1e-3) and memory.cache == pytest.approx(
        0.517e9, rel=0.01
    )  # with room for prompts that are read ahead
    assert memory.sampling == pytest.approx(201088 * 5, rel=0.02) and memory.usable == int(84942979072 * 0.9)


def test_a_card_is_as_published():
    h100, h200 = card("h100"), card("h200")
    assert (h100.flops, h100.link) == (h200.flops, h200.link) == (989e12, 450e9)
    assert h100.bandwidth == pytest.approx(3.35e12, rel=1e-3) and h200.bandwidth == 4.8e12
    assert h200.memory == pytest.approx(141 * 2**30, rel=1e-3)


@needs_aot
@pytest.mark.parametrize("gpus, data", [(2, 1), (8, 1), (8, 4)])
def test_the_stages_of_a_device_are_its_part(gpus, data):
    config, rows, start, tokens = GPT_OSS_20B, 16, 1000, 3
    partition = Setting(config, "h200", gpus, data).partition
    whole = {part.name: part for part in floor.stages(config, rows // data, start, tokens)}
    parts = {part.name: part for part in floor.stages(config, rows, start, tokens, partition)}
    devices = gpus // data
    wider = expert_width(config, "tiled", partition) / config.intermediate_size
    assert parts.keys() == whole.keys() | ({"all-reduces"} if devices > 1 else set())
    assert parts["router"] == whole["router"]
    for name, factor in (("embedding", 1), ("projections", 1), ("attention", 1), ("experts", wider), ("unembedding", 1)):
        assert parts[name].bytes * devices == pytest.approx(whole[name].bytes * factor, rel=0.01), name
        assert parts[name].flops * devices == pytest.approx(whole[name].flops * factor), name
    residual = rows // data * tokens * config.hidden_size
    assert parts["all-reduces"].sent == (2 * config.num_hidden_layers * 4 + 2) * residual * 2 * (devices - 1) / devices


def test_what_binds():
    parts = [floor.Stage("a", 100, 5), floor.Stage("b", 10, 50), floor.Stage("c", 0, 0, 30)]
    ceilings = Ceilings(bandwidth=10, flops=1)
    assert floor.bound(parts, ceilings, 2) == {"memory": 10, "compute": 50, "interconnect": 15}
    assert floor.seconds(parts, ceilings, 2) == 75 and floor.seconds(parts, ceilings) == 60


@pytest.mark.thorough
def test_one_devices_floor_is_the_benchmarks(nothing_compiled):
    setting = Setting(GPT_OSS_120B, "h200", slots=64, context=8192, prompt=2048)
    made, h200 = planning.plan(setting), Ceilings(4.8e12, 989e12)
    assert made.step.seconds == pytest.approx(floor.decode_seconds(GPT_OSS_120B, 64, 8191, 1, h200))
    assert made.prompts.seconds == pytest.approx(floor.prefill_seconds(GPT_OSS_120B, 1, 2048, 2048, h200))
    assert made.step.tokens_per_second == 64 / made.step.seconds and made.step.binds == "memory" and not made.step.interconnect
    assert made.prompts.tokens_per_second == 2048 / made.prompts.seconds and made.prompts.binds == "compute"


@pytest.mark.thorough
def test_json_is_all_that_is_printed(nothing_compiled, capsys):
    assert run("--model=gpt-oss-20b", "--slots=8", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    made = planning.plan(Setting(GPT_OSS_20B, "h100", slots=8))
    assert told == json.loads(json.dumps({"model": "gpt-oss-20b"} | made.to_dict()))
    assert read_config("gpt-oss-20b").from_dict(told["setting"]["config"]) == GPT_OSS_20B


@pytest.mark.thorough
@needs_aot
def test_a_sweep_is_a_list_a_table_and_a_picture(nothing_compiled, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plan.png"
    assert run("--model=gpt-oss-120b", "--sweep=1,2,8", f"--plot={picture}", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [p["setting"]["num_gpus"] for p in told] == [1, 2, 8]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("--model=gpt-oss-120b", "--sweep=1,2,8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[2].split()[0] == "1" and lines[4].split()[0] == "8"


@needs_aot
@pytest.mark.thorough
def test_a_report_has_every_number(nothing_compiled, capsys):
    assert run("--model=openai/gpt-oss-120b", "--gpu=h200", "--num_gpus=8", "--data=2", "--context=32768") == 0
    printed = capsys.readouterr().out
    assert "8 x H200 (2 replicas of 4)" in printed and "It fits." in printed
    assert "decode step: 2 all-reduce a layer of f32[64,2880] (0.737 MB)" in printed
    for heading in ("weights", "KV cache", "temporaries", "headroom", "by the tables", "interconnect ms", "binds"):
        assert heading in printed


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--gpu=a100"], "gpu must be one of h100, h200; got 'a100'"),
        (["--num_gpus=16"], "from 1 to 8"),
        (["--num_gpus=0"], "from 1 to 8"),
        pytest.param(["--num_gpus=3"], "must divide vocab_size", marks=needs_aot),
        pytest.param(["--sweep=1,3"], "must divide vocab_size", marks=needs_aot),
        (["--num_gpus=4", "--data=3"], "data must divide num_gpus"),
        pytest.param(["--num_gpus=4", "--data=4", "--slots=6"], "slots must be a multiple", marks=needs_aot),
        (["--context=200000"], "at most the model's 131,072"),
        (["--slots=0"], "slots must be a positive integer"),
        (["--chunk=-1"], "chunk must be a positive integer"),
        (["--filled=8192"], "filled must lie between 0 and context"),
        (["--prompt=9000"], "prompt must lie between 0 and context"),
        (["--memory_fraction=1.5"], "memory_fraction must be"),
        (["--model=gpt-oss-7b"], "there is no gpt-oss-7b"),
        (["--model=."], "needs config.json"),
        (["--sweep="], "at least one"),
        (["--sweep=1,two"], "--sweep must be numbers of GPUs"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(arguments, said, monkeypatch):
    monkeypatch.setattr(entry, "plan", lambda setting: pytest.fail("compiled"))
    with pytest.raises(app.UsageError, match=said):
        run(*arguments)


def test_arguments_that_are_no_flags_are_refused():
    with pytest.raises(app.UsageError, match="unexpected arguments: 8"):
        entry.main(["plan", "8"], flags.FlagValues())


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(aot, "unavailable", lambda: "install the extra `aot`")
    assert run() == "install the extra `aot`"
    monkeypatch.setattr(aot, "unavailable", lambda: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(app.UsageError, match="--plot needs matplotlib"):
        run("--plot=plan.png")


@needs_aot
def test_abstract_arrays_lie_as_the_tables_say():
    partition = Setting(GPT_OSS_120B, "h100", 8, 2).partition
    state = abstract.state(GPT_OSS_120B, sizes(GPT_OSS_120B, slots=6, context=4096, replicas=2), partition)
    assert state.sampling.counts.shape == (6, 201088) and state.token.shape == state.cache.length.shape == (6,)
    assert state.sampling.counts.sharding.shard_shape((6, 201088)) == (3, 50272)
    pages = state.cache.k[1]
    assert pages.shape[0] == 6 * 64 and pages.sharding.shard_shape(pages.shape) == (3 * 64, 2, *pages.shape[2:])
    assert abstract.device_bytes(pages) * 8 == math.prod(pages.shape) * 2


def test_collectives_of_a_text():
    hlo = """\
HloModule jit_f

%fused (p: f32[4]) -> f32[4] {
  ROOT %all-reduce.1 = f32[4]{0} all-reduce(%p), channel_id=1, metadata={op_name="jit(f)/while/body/layers.3/moe/psum"}
}

%branch (p: f32[2,8]) -> f32[2,16] {
  %g = ((f32[2,8]{1,0}), f32[2,16]{1,0}) all-gather-start(%p), dimensions={1}
  ROOT %d = f32[2,16]{1,0} all-gather-done(%g)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %fusion.1 = f32[4]{0} fusion(%p), kind=kCustom, calls=%fused
  %c = f32[2,16]{1,0} conditional(%i, %p), branch_computations={%branch}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[4]{0}) while(%t), condition=%cond, body=%body
  %r = (bf16[2,3]{1,0}, pred[5]{0}) all-reduce(%a, %b), to_apply=%sum
  ROOT %s = f32[128]{0} all-reduce-start(%r)
}
"""
    found = collectives(hlo)
    assert [(c.name, c.kind, c.shapes, c.bytes, c.loop) for c in found] == [
        ("all-reduce.1", "all-reduce", ("f32[4]",), 16, True),
        ("g", "all-gather", ("f32[2,16]",), 128, True),
        ("r", "all-reduce", ("bf16[2,3]", "pred[5]"), 17, False),
        ("s", "all-reduce", ("f32[128]",), 512, False),
    ]
    assert found[0].op_name.endswith("layers.3/moe/psum") and not found[1].op_name and found[1].elements == 32
