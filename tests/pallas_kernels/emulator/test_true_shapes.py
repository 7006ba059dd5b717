"""gpt-oss' true shapes, a few blocks of each launch in the emulator: as near to float32 as a bfloat16 result, nothing written elsewhere.

All of them: `pytest -m slow tests/pallas_kernels/emulator/test_true_shapes.py`, or `python -m pallas_kernels.emulator.true_shapes`.
"""

import dataclasses
import math

import numpy as np
import pytest

from pallas_kernels import aot
from pallas_kernels.bench import large
from pallas_kernels.emulator import sampled
from pallas_kernels.emulator.sampled import BOUND

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))

CASES = {f"{case.op}, {case.name}": case for case in large.cases()}
THOROUGH = (
    "routing.route, 120b, 1 token", "projection.unembed, 3 tokens", "projection.qkv, 33 tokens", "moe.gate_up, 120b, 3 tokens",
    "moe.down, 120b, 33 tokens", "attention.decode, batch 64, 8,192 keys, window 128",
)  # fmt: skip


def check(case, **options):
    outcome = sampled.run(case, **options)
    assert outcome.right
    assert 0 < outcome.ran <= outcome.of and outcome.compared
    return outcome


def test_a_launch_of_which_two_tokens_run():
    case = CASES["norm.add_norm, 64 tokens"]
    outcome = check(case, blocks=[(63, 0, 0), (5, 0, 0)])
    assert (outcome.kernel, outcome.ran, outcome.of, outcome.compared) == ("add_norm", 2, 64, 2 * (2 * 2880 + 1))
    assert outcome.row()[:4] == ["add_norm", "64 tokens", "2", "64"]


def test_what_is_wrong_is_told():
    case, one = CASES["norm.add_norm, 3 tokens"], [(0, 0, 0)]
    shifted = dataclasses.replace(case, truth=lambda operands, written: ((i, at, w * 1.01) for i, at, w in case.truth(operands, written)))
    assert BOUND < sampled.run(shifted, blocks=one).error < 0.02
    fewer = dataclasses.replace(case, truth=lambda operands, written: list(case.truth(operands, written))[1:])
    assert sampled.run(fewer, blocks=one).error == math.inf, "something was written that nobody expects"
    other = dataclasses.replace(case, truth=lambda operands, written: [(2, (1,), np.float32(1)), *case.truth(operands, written)])
    assert sampled.run(other, blocks=one).error == math.inf, "something was not written"
    with pytest.raises(RuntimeError, match="must have the operands"):
        sampled.run(dataclasses.replace(case, operands=lambda _: case.operands(one)[1:]), blocks=one)


def test_the_blocks_that_are_taken():
    assert large.sample((1, 1, 1)) == [(0, 0, 0)]
    assert large.sample((107, 1, 1)) == [(0, 0, 0), (106, 0, 0), (53, 0, 0)]
    assert large.sample((45, 32, 1)) == [(0, 0, 0), (44, 0, 0), (22, 16, 0), (44, 31, 0)]
    with pytest.raises(ValueError, match="is called so"):
        large.cases(["moe"], ["21b"])


@pytest.mark.thorough
@pytest.mark.parametrize("name", THOROUGH)
def test_some_true_shapes(name):
    check(CASES[name], seed=1, policy="late")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_true_shape(name):
    check(CASES[name])
