"""What warps wait for, in kernels of a few lines: named barriers, mbarriers, registers to be free; warps whose lanes part."""

import numpy as np
import pytest
from tiny_kernels import kinds, run

from pallas_kernels.emulator import POLICIES, Fault

I32 = np.int32
OUT = "mul.wide.u32 %d8, %r0, 4; add.s64 %d9, %d0, %d8; st.global.b32 [%d9], %r1;"  # %r1 to the thread's word
BARRIER = "mov.b32 %r9, memory; setp.eq.u32 %p1, %r0, 0; @%p1 mbarrier.init.shared.b64 [%r9], {count}; bar.sync 0;"
WAIT = "again: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], {parity}; @!%p2 bra again;"


@pytest.mark.parametrize("policy", POLICIES)
def test_lanes_that_part_and_meet(policy):
    """Each lane adds 1 as often as its number says."""
    body = """
        mov.b32 %r1, 0;
        loop: setp.ge.u32 %p1, %r1, %r0; @%p1 bra out; add.s32 %r1, %r1, 1; bra loop;
        out: shl.b32 %r1, %r1, 1;
    """
    (out,) = run(body + OUT, results=[((32,), I32)], policy=policy).outputs
    np.testing.assert_array_equal(out, 2 * np.arange(32))


def test_what_all_lanes_must_run_together():
    with pytest.raises(Fault, match="executed by 3 of 32 lanes"):
        run("setp.lt.u32 %p1, %r0, 3; @%p1 bar.sync 0;")


@pytest.mark.parametrize(
    "instruction, expected",
    [
        ("shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;", np.arange(32) ^ 1),
        ("shfl.sync.idx.b32 %r1, %r0, 5, 31, -1;", np.full(32, 5)),
        ("shfl.sync.down.b32 %r1, %r0, 8, 31, -1;", np.where(np.arange(32) < 24, np.arange(32) + 8, np.arange(32))),
        ("shfl.sync.up.b32 %r1, %r0, 8, 0, -1;", np.where(np.arange(32) >= 8, np.arange(32) - 8, np.arange(32))),
        ("setp.lt.u32 %p1, %r0, 3; vote.sync.ballot.b32 %r1, %p1, -1;", np.full(32, 7)),
        ("elect.sync %r2|%p1, -1; selp.b32 %r1, 1, 0, %p1;", np.arange(32) == 0),
    ],
)
def test_what_lanes_exchange(instruction, expected):
    (out,) = run(instruction + OUT, results=[((32,), I32)]).outputs
    np.testing.assert_array_equal(out, expected)


def test_a_barrier_that_not_all_reach():
    with pytest.raises(Fault, match="deadlock:\n  block .* warp 0 at .*bar.sync"):
        run("setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64;", threads=64)


@pytest.mark.parametrize("count", [40, 128])
def test_a_barrier_of_threads_that_are_not_there(count):
    with pytest.raises(Fault, match=f"barrier 1 of {count} threads"):
        run(f"bar.sync 1, {count};", threads=64)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_mbarrier_passes_on_what_those_knew_who_arrived(policy):
    """Warp 1 reads what warp 0 wrote before it arrived."""
    body = f"""
        {BARRIER.format(count=32)} setp.lt.u32 %p3, %r0, 32; @!%p3 bra reads;
        st.shared.b32 [%r9+16], 41; mbarrier.arrive.shared.b64 %d12, [%r9]; ret;
        reads: {WAIT.format(parity=0)} ld.shared.b32 %r1, [%r9+16]; add.s32 %r1, %r1, 1; {OUT}
    """
    done = run(body, results=[((64,), I32)], threads=64, policy=policy)
    assert done.outputs[0][32:].tolist() == [42] * 32 and not kinds(done)


def test_an_mbarrier_that_nobody_waits_for():
    body = f"""
        {BARRIER.format(count=32)} setp.lt.u32 %p3, %r0, 32; @!%p3 bra reads;
        st.shared.b32 [%r9+16], 41; mbarrier.arrive.shared.b64 %d12, [%r9]; ret;
        reads: ld.shared.b32 %r1, [%r9+16]; {OUT}
    """
    found = {kind for seed in range(4) for kind in kinds(run(body, results=[((64,), I32)], threads=64, seed=seed))}
    assert found & {"race: read of what was not written before", "race: write over what is read"}


def test_the_wrong_parity_waits_for_nothing():
    """A phase that has not begun counts as over: PTX says so, and kernels count on it for slots that are free at first."""
    done = run(f"{BARRIER.format(count=32)} {WAIT.format(parity=1)} mov.b32 %r1, 3; {OUT}", results=[((32,), I32)])
    assert done.outputs[0].tolist() == [3] * 32


@pytest.mark.parametrize(
    "body, said",
    [
        ("mov.b32 %r9, memory; mbarrier.arrive.shared.b64 %d12, [%r9];", "no mbarrier was initialised at 0x400"),
        (BARRIER.format(count=16) + "mbarrier.arrive.shared.b64 %d12, [%r9];", "mbarrier: 32 arrivals, 16 pending of 16"),
        (BARRIER.format(count=0), "mbarrier of 0 arrivals"),
        (BARRIER.format(count=64) + "mbarrier.arrive.shared.b64 %d12, [%r9];" + WAIT.format(parity=0), "deadlock"),
        ("setmaxnreg.inc.sync.aligned.u32 24;", "setmaxnreg.inc 24, the warp has 32"),
        ("setmaxnreg.dec.sync.aligned.u32 30;", "setmaxnreg 30"),
        ("setmaxnreg.inc.sync.aligned.u32 64;", "deadlock"),
    ],
)
def test_what_no_kernel_may_do(body, said):
    with pytest.raises(Fault, match=said):
        run(body)


def test_registers_that_others_gave_up():
    body = """
        setp.lt.u32 %p1, %r0, 32; @%p1 bra gives;
        setmaxnreg.inc.sync.aligned.u32 40; ret;
        gives: setmaxnreg.dec.sync.aligned.u32 24;
    """
    assert run(body, threads=64).executed["setmaxnreg.inc.sync.aligned.u32"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "bfind.u32 %r1, %r0;",
        "redux.sync.add.u32 %r1, %r0, -1;",
        "cvt.rn.e4m3x2.f32 %h1, %f0, %f1;",
        "barrier.red.popc.u32 %r1, 0, %p1;",
        "cp.async.ca.shared.global [%r1], [%d0], 16;",
        "atom.global.add.noftz.f16x2 %r1, [%d0], %r2;",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r1], %r2, [%r3];",
        "st.local.b32 [%r1], %r2;",
        "setp.eq.u32 %p1|%p2, %r1, %r2;",
    ],
)
def test_an_unknown_instruction_is_named(text):
    """The whole of it, wherever it is that it goes beyond what is known."""
    with pytest.raises(NotImplementedError, match="does not know the instruction") as raised:
        run(text, results=[((1,), I32)])
    assert text.removesuffix(";") in str(raised.value) and "in tiny at" in str(raised.value)
