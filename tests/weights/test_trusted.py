"""Kernels that `load` leaves out: by what it is told, by what was found on the GPU, and for the programs of that model alone."""

import dataclasses
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptoss_jax as gj
from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B
from gptoss_jax.model import transformer
from gptoss_jax.model.cache import init_cache
from gptoss_jax.weights import loading, trusted
from pallas_kernels import check, dispatch, hopper
from pallas_kernels.check import verdicts, watching

DEVICE = SimpleNamespace(
    device_kind="NVIDIA H200", platform="gpu", local_hardware_id=3, client=SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
)


def on_a_hopper():
    """As if programs ran on one."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=hopper.H200))


@pytest.fixture
def real(monkeypatch, tmp_path):
    """The Hopper of `on_a_hopper` is the machine's own, and its user's cache is empty."""
    monkeypatch.setattr(dispatch, "pretending", lambda: False)
    monkeypatch.setattr(trusted, "_device", lambda partition: DEVICE)
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path / "kernels")


@pytest.fixture
def asked(monkeypatch):
    """What `check.left_out` was asked, which finds `asked.bad`."""
    found = SimpleNamespace(calls=[], bad={})

    def left_out(key, preset, **options):
        found.calls.append((key, preset, options))
        return found.bad

    monkeypatch.setattr(check, "left_out", left_out)
    return found


def left_out(kernels="auto", config=GPT_OSS_20B, dtype="bfloat16"):
    with on_a_hopper():
        return trusted.left_out(kernels, config, dtype, None)


def test_on_a_cpu_there_is_nothing_to_leave_out(asked):
    for kernels in ("auto", "off"):
        assert trusted.left_out(kernels, GPT_OSS_20B, "bfloat16", None) == ()
    assert gj.load("nano", kernels="off", progress=False).params.without == () and not asked.calls


def test_what_cannot_be_is_refused_before_any_work():
    with pytest.raises(ValueError, match="kernels='on' needs a Hopper GPU .* and JAX runs on cpu; pass kernels='auto', which runs XLA's"):
        gj.load("nano", kernels="on", progress=False)
    with pytest.raises(ValueError, match="kernels must be 'auto', 'on' or 'off'; got 'yes'; use one of these"):
        gj.load("nowhere", kernels="yes")


def test_on_a_hopper_they_are_as_told(asked, real):
    assert left_out("on") == () and left_out("off") == dispatch.KERNELS and left_out(dtype="float32") == () and not asked.calls
    asked.bad = {"unembed": "hung: ...", "route": "wrong: ..."}
    assert left_out() == ("unembed", "route")
    key, preset, options = asked.calls[0]
    assert (key.device, key.jax, preset, options["device"]) == ("NVIDIA H200", jax.__version__, "20b", 3)
    left_out(config=GPT_OSS_120B)
    assert asked.calls[1][1] == "120b"


def test_a_device_that_is_only_named_is_not_checked(asked):
    assert left_out() == left_out("on") == () and left_out("off") == dispatch.KERNELS and not asked.calls


@pytest.mark.parametrize(
    "without, form",
    [((), "tiled"), (("attention_decode", "moe_grouped"), "tiled"), (("moe_down",), "packed"), (dispatch.KERNELS, "packed")],
)
def test_experts_are_held_for_the_kernels_that_run(without, form):
    with on_a_hopper():
        assert loading._form("auto", "huggingface", GPT_OSS_20B, "bfloat16", None, without) == form
        assert loading._form("tiled", "huggingface", GPT_OSS_20B, "bfloat16", None, without) == "tiled"


def test_a_model_says_what_it_does_without():
    model = gj.load("nano", progress=False)
    assert "without" not in repr(model)
    other = dataclasses.replace(model, params=model.params.replace(without=("route", "unembed")))
    assert repr(other).endswith(", without the kernels route, unembed)")


def test_kernels_are_a_part_of_what_a_program_is_known_by():
    params = gj.load("nano", progress=False).params
    trees = [jax.tree.structure(params.replace(without=names)) for names in ((), ("route",), ("route", "unembed"), ("route",))]
    assert trees[1] == trees[3] and len(set(trees)) == len(set(map(repr, trees))) == 3


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that are traced, in order; XLA's forms are computed in their places."""
    names = []
    whole = dispatch.run

    def run(op, implementation, *args, xla, kernel=None, kernels=None, **options):
        def noted():
            names.extend(kernels or (op,))
            return xla, None

        return whole(op, implementation, *args, xla=xla, kernel=kernel and noted, kernels=kernels)

    monkeypatch.setattr(dispatch, "run", run)
    monkeypatch.setattr(dispatch, "_shared", lambda kernel: kernel)
    return names


def traced(params, config, names, tokens=1) -> set[str]:
    """Kernels of a decode step, or of prompts of so many tokens."""
    names.clear()
    cache = jax.eval_shape(lambda: init_cache(config, 2, 256, chunk=128))
    rows = jax.ShapeDtypeStruct((2,), jnp.int32)
    with on_a_hopper():
        if tokens == 1:
            step = lambda *x: transformer.decode_step(x[0], config, *x[1:], active=jnp.ones(2, bool))
            jax.eval_shape(step, params, cache, rows)
        else:
            read = lambda *x: transformer.extend(x[0], config, *x[1:])
            jax.eval_shape(read, params, cache, jax.ShapeDtypeStruct((2, tokens), jnp.int32), rows)
    return set(names)


def test_each_models_programs_do_without_its_own(launched):
    model = gj.load("nano", experts="tiled", progress=False)
    config = dataclasses.replace(model.config, num_hidden_layers=1, layer_types=model.config.layer_types[:1])
    params = model.params.replace(layers=model.params.layers[:1])
    decoded = {"project_qkv", "project_out", "unembed", "attention_decode", "router", "route", "moe_gate_up", "moe_down", "add_norm"}
    assert traced(params, config, launched) == decoded
    assert traced(params, config, launched, tokens=64) == {"attention_prefill", "moe_grouped"}
    for names in (("route",), ("attention_decode", "moe_grouped"), dispatch.KERNELS):
        other = params.replace(without=names)
        assert traced(other, config, launched) == decoded - set(names)
        assert traced(other, config, launched, tokens=64) == {"attention_prefill", "moe_grouped"} - set(names)
        assert traced(params, config, launched) == decoded, "the first model's are as they were"


@pytest.mark.thorough
def test_a_step_without_kernels_is_xlas(interpreted=hopper.interpret):
    """Under the interpreter, where kernels would run: none does, and the numbers are those of a CPU without it."""
    model = gj.load("nano", experts="tiled", progress=False)
    config = dataclasses.replace(model.config, num_hidden_layers=1, layer_types=model.config.layer_types[:1])
    params = model.params.replace(layers=model.params.layers[:1])
    cache, tokens = init_cache(config, 2, 256, chunk=128), jnp.array([30, 40], jnp.int32)
    step = lambda params: transformer.decode_step(params, config, cache, tokens, active=jnp.ones(2, bool))[0]
    wanted = jax.jit(step)(params)
    with interpreted():
        got = jax.jit(step)(params.replace(without=dispatch.KERNELS))
    assert np.array_equal(np.asarray(got), np.asarray(wanted))


CHILD = """
import json, os, sys, time
report = os.fdopen(int(sys.argv[-1].partition("=")[2]), "w", buffering=1)
tell = lambda phase, **more: report.write(json.dumps({"phase": phase} | more) + "\\n")
sys.stdin.readline()
for phase in ("device", "reference", "compile", "run"): tell(phase, case="true shape")
BODY
tell("done", case="true shape", error=error, worst=0.0, same=True); tell("end")
"""
BODIES = {
    "route": "time.sleep(60)",
    "unembed": "os.kill(os.getpid(), 11)",
    "add_norm": "error = float('nan')",
    "moe_grouped": "tell('failed', kind='RuntimeError', message='illegal address')",
    "project_out": "report.write('?\\n'); error = 0",
}


def test_kernels_that_hang_crash_and_lie_are_left_out_by_name(real, monkeypatch, caplog):
    """The whole way, with processes in the places of those that would run a kernel."""
    command = lambda kernel: [sys.executable, "-S", "-c", CHILD.replace("BODY", BODIES.get(kernel, "error = 1e-3"))]
    limits = dict.fromkeys(watching.LIMITS, 10.0) | {"run": 0.5}
    run = lambda kernels, preset, **options: watching.in_turn(kernels, command, check.right, limits=limits, told=options["told"])
    monkeypatch.setattr(check.left_out, "__kwdefaults__", check.left_out.__kwdefaults__ | {"run": run})
    assert set(left_out()) == set(BODIES)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("The kernels were never checked on this NVIDIA H200")
    assert second.startswith("On this NVIDIA H200 XLA's forms run in place of the kernels project_out (failed: it said what no check says")
    assert "unembed (crashed: it died of SIGSEGV" in second and "route (hung: it was not done in 'true shape' after 0.5 s)" in second
    assert "moe_grouped (failed: RuntimeError" in second and "add_norm (wrong: 'true shape' is off by nan" in second
    caplog.clear()
    assert set(left_out()) == set(BODIES) and len(caplog.records) == 1, "the verdict is read, and said once"
