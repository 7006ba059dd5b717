"""The benchmarks of whole models: their floors are the published ones, they run anywhere, and they refuse to time what is wrong."""

import dataclasses
import json
from types import SimpleNamespace

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import captures, decode, device, numerics, prefill, random_model, whole_model
from benchmarks.whole_model import Point
from checkpoints.synthesize import PRESETS
from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B, TINY
from gptoss_jax.model.params import init_params
from gptoss_jax.plan import floor
from pallas_kernels import dispatch, hopper
from pallas_kernels.bench.measure import Ceilings

H200, H100 = Ceilings(4.3e12, 790e12), Ceilings(3.35e12, 989e12)
SMALLEST = dataclasses.replace(random_model.first_layers(TINY, 2), vocab_size=64, eos_token_ids=())


def run(program, *arguments: str) -> int:
    given = flags.FlagValues()
    program.define_flags(given)
    given(["program", *arguments])
    return program.main([], given)


def results(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.fixture
def smallest(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", SMALLEST)


@pytest.mark.parametrize(
    "config, batch, context, h200, h100",
    [
        (GPT_OSS_20B, 1, 1024, 1151, 897),
        (GPT_OSS_20B, 1, 131072, 620, 483),
        (GPT_OSS_20B, 32, 8192, 7240, 5640),
        (GPT_OSS_20B, 64, 1024, 19089, 14872),
        (GPT_OSS_20B, 256, 1024, 52867, 43172),
        (GPT_OSS_120B, 1, 1024, 852, 664),
        (GPT_OSS_120B, 64, 1024, 4679, 3645),
    ],
)
def test_decode_floors_are_the_published_ones(config, batch, context, h200, h100):
    for ceilings, wanted in ((H200, h200), (H100, h100)):
        assert batch / floor.decode_seconds(config, batch, context - 1, 1, ceilings) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    "config, tokens, h200, h100",
    [
        (GPT_OSS_20B, 8192, 114706, 143600),
        (GPT_OSS_20B, 131072, 41652, 52144),
        (GPT_OSS_120B, 8192, 76324, 95550),
        (GPT_OSS_120B, 131072, 27748, 34738),
    ],
)
def test_prefill_floors_are_the_published_ones(config, tokens, h200, h100):
    """Within a hundredth: the published ones leave out the unembedding of the last token."""
    for ceilings, wanted in ((H200, h200), (H100, h100)):
        assert tokens / floor.prefill_seconds(config, 1, tokens, tokens, ceilings) == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("config, gigabytes", [(GPT_OSS_20B, 3.74), (GPT_OSS_120B, 5.05)])
def test_bytes_of_a_step(config, gigabytes):
    parts = {part.name: part.bytes / 1e9 for part in floor.stages(config, 1, 1023)}
    assert sum(parts.values()) == pytest.approx(gigabytes, abs=0.005)
    if config is GPT_OSS_20B:
        wanted = {"projections": 1.27, "experts": 1.27, "unembedding": 1.16}
        assert {name: round(parts[name], 2) for name in wanted} == wanted


@pytest.mark.parametrize("start, tokens", [(0, 5), (0, 40), (3, 4), (7, 30), (100, 1), (100, 9)])
@pytest.mark.parametrize("window", [None, 8])
def test_what_the_queries_of_a_chunk_see(window, start, tokens):
    seen = [{k for k in range(q + 1) if window is None or q - k < window} for q in range(start, start + tokens)]
    assert floor._pairs(window, start, tokens) == sum(map(len, seen))
    assert floor._keys_read(window, start, tokens) == len(set.union(*seen))


@pytest.mark.thorough
def test_random_params_have_the_tables_shapes_and_are_not_alike():
    params = random_model.params(SMALLEST, "packed")
    wanted = jax.eval_shape(lambda: init_params(jax.random.key(0), SMALLEST))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), wanted)
    assert not np.array_equal(params.layers[0].moe.down.blocks, params.layers[1].moe.down.blocks)
    assert not np.array_equal(params.embedding, params.unembedding)


@pytest.mark.slow
def test_steps_are_timed(capsys, smallest):
    assert run(decode, "--preset=tiny", "--batch=2", "--context=20", "--new=3", "--repeats=2") == 0
    (result,) = results(capsys)
    assert result["tokens_per_second"] == pytest.approx(2 / result["milliseconds"] * 1e3)
    assert result["least"] <= result["tokens_per_second"] <= result["most"]
    assert 3 <= result["experts"] <= 6 and result["context"] == 20 and result["device"] == "cpu" and result["date"]
    assert 0 < result["error"] == result["plain_error"] < numerics.SANE
    assert "floor_share" not in result and "outside_device" not in result  # a CPU tells neither


@pytest.mark.slow
def test_prompts_are_timed(capsys, smallest):
    assert run(prefill, "--preset=tiny", "--prompt=32", "--chunk=16", "--repeats=2") == 0
    (result,) = results(capsys)
    assert result["tokens_per_second"] == pytest.approx(32 / result["milliseconds"] * 1e3) and result["prompt"] == 32


@pytest.mark.thorough
def test_what_is_wrong_gets_no_speed(capsys, monkeypatch, smallest):
    right = numerics.decode_step

    def wrong(params, config, cache, tokens, *, active):
        logits, cache = right(params, config, cache, tokens, active=active)
        return logits * 1.02, cache

    monkeypatch.setattr(numerics, "decode_step", wrong)
    assert run(decode, "--preset=tiny", "--batch=2", "--context=20", "--new=3", "--repeats=2") == 1
    (result,) = results(capsys)
    assert result["refused"].startswith("WRONG") and "tokens_per_second" not in result


@pytest.mark.parametrize(
    "check, passed",
    [
        (numerics.Check(0.01, 0.006, 0.3), True),
        (numerics.Check(0.013, 0.006, 0.3), False),
        (numerics.Check(0.01, 0.2, 0.3), False),
        (numerics.Check(0.01, 0.006, 1.0), False),
        (numerics.Check(float("nan"), 0.006, 0.3), False),
        (numerics.Check(0.01, 0.006, float("nan")), False),
    ],
)
def test_bounds(check, passed):
    assert check.passed == passed
    assert f"{check.plain_error:.3g}" in str(check)


def test_a_point_that_fails_does_not_cost_the_others(capsys):
    def measure(params, config, point):
        if point.batch == 2:
            raise RuntimeError("out of memory")
        return whole_model.Times([0.2, 0.1, 0.4], 4, 8, busy=0.15, more={"experts": 3.0})

    benchmark = whole_model.Benchmark(
        "made up", "context", lambda *_: numerics.Check(0.01, 0.01, 0.01), measure, lambda config, point, ceilings: 0.01
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_model, "params", lambda *_: None)
        patch.setattr(device, "ceilings", lambda: H200)
        peer = {Point(1, 5): {"tokens_per_second": 20.0, "loop": "generate"}}
        assert whole_model.run(benchmark, "tiny", "packed", [Point(2, 5), Point(1, 5)], peer) == 1
    failed, result = results(capsys)
    assert "out of memory" in failed["refused"] and result["bfloat16_flops"] == 790e12
    wanted = {"tokens_per_second": 40, "least": 20, "most": 80, "milliseconds": 50, "floor_milliseconds": 10, "floor_share": 0.2}
    wanted |= {"outside_device": 0.25, "ratio": 2, "peer_tokens_per_second": 20}
    assert {name: result[name] for name in wanted} == pytest.approx(wanted)


def test_the_plain_form_takes_no_kernels():
    with hopper.interpret():
        assert dispatch.for_hopper()
        with numerics._xla_only():
            assert not dispatch.for_hopper()


def test_busy_time_counts_overlapping_work_once():
    event = lambda start, duration: SimpleNamespace(start_ns=start, duration_ns=duration)
    line = lambda name, *events: SimpleNamespace(name=name, events=events)
    gpu = SimpleNamespace(
        name="/device:GPU:0",
        lines=[
            line("Stream #1", event(0, 100), event(300, 100)),
            line("Stream #2", event(50, 100), event(310, 10)),
            line("Steps", event(0, 999)),
        ],
    )
    host = SimpleNamespace(name="/host:CPU", lines=[line("Stream #1", event(0, 5000))])
    assert device.busy([gpu, host]) == pytest.approx(250e-9)
    assert device.busy([host]) is None


@pytest.mark.parametrize("arguments", [["--preset=tiny", "--prompt=5"], ["--preset=tiny", "--checkpoint=nano"]])
def test_options_that_would_do_nothing_are_refused(arguments):
    with pytest.raises(app.UsageError, match="random"):
        run(decode, *arguments)


def test_full_caches_hold_finite_random_keys():
    cache = random_model.full_cache(TINY, 2, 70, 10)
    assert cache.length.tolist() == [70, 70] and cache.full_table.shape == (2, 2)
    assert all(bool(jnp.all(jnp.isfinite(pages))) and float(jnp.std(pages.astype(jnp.float32))) > 0.5 for pages in (*cache.k, *cache.v))


@pytest.mark.slow
def test_the_cost_of_looking_is_told_for_every_kind_of_site(smallest, capsys):
    assert run(captures, "--preset=tiny", "--layers=2", "--tokens=8", "--pairs=1") == 0
    told = results(capsys)
    assert [one["kept"] for one in told] == list(captures.KEPT) and all(one["ratio"] > 0 for one in told)
    assert run(captures, "--preset=tiny", "--layers=2", "--tokens=8", "--generate=3", "--pairs=1") == 0
    assert [one["kept"] for one in results(capsys)] == list(captures.DRAWN)
    with pytest.raises(app.UsageError, match="either --checkpoint or --preset"):
        run(captures)
