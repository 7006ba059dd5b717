"""Two processes with four devices each, over loopback: the tokens of one device, and what they must agree on."""

import json
import os
from pathlib import Path
import re
import socket
import subprocess
import sys

from absl import flags
from on_meshes import alone
import pytest

from checkpoints.synthesize import write_checkpoint
import gptoss_jax as gj
from gptoss_jax.parallel import launch

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both processes printed."""
    folder = tmp_path_factory.mktemp("processes")
    write_checkpoint(gj.TINY, folder / "other")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [[sys.executable, str(SUPPORT / "one_of_two.py"), str(port), str(i), str(folder), str(folder / "other")] for i in range(2)]
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": os.environ | {"PYTHONPATH": f"{ROOT}:{SUPPORT}"},
    }
    started = [subprocess.Popen(each, **options) for each in arguments]
    try:
        ended = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in ended]


@pytest.mark.slow
def test_both_have_four_of_eight_devices(results):
    assert [(one["devices"], one["local"]) for one in results] == [(8, 4), (8, 4)]
    assert len(set(results[0]["held"]) | set(results[1]["held"])) == 8
    assert not set(results[0]["held"]) & set(results[1]["held"]), "each holds what its own devices need"


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", [("tiny", "float32"), ("nano", "bfloat16")])
def test_tokens_are_those_of_one_device(results, name, dtype):
    wanted = [row[0] for row in alone(name, dtype)]
    assert results[0][name] == results[1][name] == wanted


@pytest.mark.slow
def test_both_see_the_same_stream(results):
    assert results[0]["streamed"] == results[1]["streamed"] and results[0]["streamed"]


@pytest.mark.slow
def test_what_both_saved_they_both_read_onto_another_mesh(results):
    assert results[0]["saved"] and results[1]["saved"]


@pytest.mark.slow
def test_what_one_of_them_leaves_out_both_do(results):
    assert [result["without"] for result in results] == [["unembed", "route"]] * 2


@pytest.mark.slow
def test_processes_that_disagree_are_refused_alike(results):
    for one in results:
        assert re.fullmatch(
            r"ValueError: every process must load .* alike; of 2, process 1 has other config and tensors than process 0; .*\.",
            one["other checkpoint"],
        )
        assert re.search(r"process 1 has other arguments than process 0", one["other arguments"])
    assert re.search(r"process 1 could not, for a reason in its own error", results[0]["no checkpoint"])
    assert results[1]["no checkpoint"].startswith("FileNotFoundError: there is no checkpoint directory")


def start(*given):
    values = flags.FlagValues()
    launch.define_flags(values)
    values(["program", *given])
    return launch.start(values)


def test_no_flag_is_no_mesh():
    assert start() is None
    assert start("--mesh=2x4").shape == {"data": 2, "model": 4}


@pytest.mark.parametrize(
    "given, message",
    [
        (["--mesh=8"], r"--mesh must be DATAxMODEL, two positive numbers; got '8'; 1x8 is one replica on eight devices\."),
        (["--mesh=0x8"], "--mesh must be DATAxMODEL"),
        (["--mesh=1x16"], r"a mesh of data=1 and model=16 needs 16 devices; there are 8 \(cpu\); ask for fewer, or start with more"),
        (["--mesh=1x8", "--num_processes=2"], "--coordinator_address, --num_processes and --process_id go together; give all three"),
        (["--distributed"], "several processes need to know how they share the model; give --mesh=DATAxMODEL"),
    ],
)
def test_flags_that_cannot_be_obeyed_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        start(*given)
