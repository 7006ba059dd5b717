"""The check itself, in this process and in its own: right numbers pass, wrong ones and changing ones do not; the command rehearses."""

import dataclasses
import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import check
from pallas_kernels.bench import Case, measure
from pallas_kernels.check import together, trial, verdicts

ROOT = Path(__file__).parents[3]


def case(run=jnp.sin, name="small", **changes):
    given = {"run": run, "reference": jnp.sin, "arguments": lambda key: (jax.random.normal(key, (8, 8)),), "bytes": 0, "flops": 0}
    return Case("op", name, **(given | changes))


def numbers(case: Case, runs: int = 2) -> dict:
    told = list(trial.phases([case], runs=runs))
    assert [phase for phase, _ in told] == ["device", "reference", "compile", "run", "done"]
    return told[-1][1]


def test_all_that_can_be_ready_is_before_the_first_runs():
    told = [(phase, more.get("case", "")) for phase, more in trial.phases([case(name="a"), case(name="b")], runs=1)]
    assert told[:5] == [("device", ""), *((phase, name) for name in "ab" for phase in ("reference", "compile"))]
    assert told[5:] == [(phase, name) for name in "ab" for phase in ("run", "done")]


def test_what_is_right_passes():
    done = numbers(case())
    assert check.right(done["error"], done["worst"]) and done["same"]


@pytest.mark.parametrize("wrong", [lambda x: jnp.sin(x) * 1.01, lambda x: jnp.sin(x).at[0, 0].set(jnp.nan), jnp.zeros_like])
def test_what_is_wrong_does_not(wrong):
    done = numbers(case(wrong))
    assert not check.right(done["error"], done["worst"]) and done["same"]


def test_what_changes_from_run_to_run_is_noticed():
    count = iter(range(9))
    tick = lambda x: x + jnp.float32(1e-9) * jax.pure_callback(lambda: jnp.float32(next(count)), jax.ShapeDtypeStruct((), jnp.float32))
    done = numbers(case(tick, reference=lambda x: x, arguments=lambda key: (jnp.zeros((2, 2)).at[0, 0].set(1),)))
    assert not done["same"] and check.right(done["error"], done["worst"])


def test_what_is_written_over_is_drawn_again():
    done = numbers(case(lambda x: x + 1, reference=lambda x: x + 1, donate=(0,)), runs=3)
    assert done["same"] and done["error"] == 0


@pytest.mark.thorough
@pytest.mark.parametrize("kernel", ["add_norm"])
def test_a_small_call_in_the_interpreter(kernel):
    done = dict(trial.rehearsed(kernel))["done"]
    assert 0 < done["error"] < 0.003, "rounded to bfloat16, and not compared with itself"


def run(*flags: str, cache: Path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "pallas_kernels.check", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cache, check=False, timeout=1200)


@pytest.mark.thorough
def test_a_step_of_true_widths_is_within_bounds_by_xlas_forms():
    """What bfloat16 costs two layers, without any kernel, at 20b's widths with few experts: half of the bound."""
    size = dataclasses.replace(together.SIZES["20b"], E=8, V=2048)
    one = together.case("few experts", size, 1)
    error, worst = measure.errors(one)
    assert check.right(error, worst, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("without", [(), ("route", "moe_down")])
def test_together_are_the_kernels_of_a_decode_step(compile_for_hopper, without):
    small = dataclasses.replace(together.SMALL, layers=2)
    one = together.case("small", small, 1, without)
    launches = [name for name in compile_for_hopper(one.run, *one.shapes(), xla_kernels=False).launches if not name[0].isupper()]
    a_layer = ["project_qkv", "attention_decode", "project_out", "router", "route", "moe_gate_up", "moe_down", "add_norm"]
    assert [name for name in launches if name in (*a_layer, "unembed")] == [n for n in [*2 * a_layer, "unembed"] if n not in without]


@pytest.mark.thorough
def test_the_command_rehearses_every_kernel_on_a_cpu(tmp_path):
    done = run(f"--out={tmp_path}/check.jsonl", cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, last = done.stdout.strip().split("\n")
    assert first.startswith("A rehearsal on the CPU, for there is no Hopper GPU (H100, H200) here: JAX runs on cpu.")
    assert last == "Every kernel passed its rehearsal, in Mosaic's interpreter; no verdict on a GPU was written."
    lines = [line.split()[:2] for line in done.stdout.split("\n\n")[-2].split("\n")[1:]]
    assert lines == [[kernel, "passed"] for kernel in check.CHECKS]
    assert len((tmp_path / "check.jsonl").read_text().splitlines()) == len(check.CHECKS)
    assert not list(tmp_path.rglob("gptoss-jax/kernels/*.json"))


@pytest.mark.thorough
def test_what_this_machine_cannot_check_is_no_verdict(tmp_path, monkeypatch):
    """Where kernels are asked for at true shapes on a CPU, their processes fail while they compile, and say so."""
    (outcome,) = check.run(["add_norm"], "20b")
    assert outcome.verdict == "failed" and "interpret mode" in outcome.why.lower() and not outcome.cases
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path)
    key = verdicts.key("cpu", "cpu")
    check.keep(key, "20b", [outcome])
    assert verdicts.read(key)["add_norm"]["why"] == outcome.why
