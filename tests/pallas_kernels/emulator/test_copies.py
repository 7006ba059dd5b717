"""Bulk copies in kernels of a few lines: what arrives where, who may look when, and tensor maps against NumPy."""

import numpy as np
import pytest
from tiny_kernels import kinds, run

from pallas_kernels.emulator import POLICIES, Fault
from pallas_kernels.emulator.chip import tensor_map
from pallas_kernels.emulator.host import Described

I32, U16 = np.int32, np.uint16
START = """
    mov.b32 %r9, memory; add.s32 %r8, %r9, 1024; setp.eq.u32 %p1, %r0, 0; mul.wide.u32 %d8, %r0, 4;
    @%p1 mbarrier.init.shared.b64 [%r9], 1; bar.sync 0;
"""  # an mbarrier at %r9, room at %r8
WAIT = "again: mbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0; @!%p2 bra again;"
LOAD = """
    @%p1 mbarrier.arrive.expect_tx.shared.b64 %d12, [%r9], {bytes};
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%d0], 128, [%r9];
"""
READ = "cvt.u32.u64 %r7, %d8; add.s32 %r6, %r8, %r7; ld.shared.b32 %r1, [%r6]; add.s64 %d9, %d1, %d8; st.global.b32 [%d9], %r1;"
X = np.arange(32, dtype=I32) + 7


@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_that_are_waited_for(policy):
    done = run(START + LOAD.format(bytes=128) + WAIT + READ, [X], [((32,), I32)], shared=2048, policy=policy, observe=True)
    np.testing.assert_array_equal(done.outputs[0], X)
    assert not kinds(done) and not done.notes
    (observed,) = done.observed.values()
    assert (observed.copied_in, observed.copied_out, observed.copies, observed.stored) == (128, 0, 1, 128)


def test_bytes_that_nobody_waits_for():
    assert "race: read of what was not written before" in kinds(
        run(START + LOAD.format(bytes=128) + READ, [X], [((32,), I32)], shared=2048, policy="late")
    )


def test_fewer_bytes_than_are_expected():
    with pytest.raises(Fault, match="deadlock"):
        run(START + LOAD.format(bytes=256) + WAIT, [X], [((32,), I32)], shared=2048)


STORE = """
    mov.b32 %r8, memory; mul.wide.u32 %d8, %r0, 4; cvt.u32.u64 %r7, %d8; add.s32 %r6, %r8, %r7; setp.eq.u32 %p1, %r0, 0;
    st.shared.b32 [%r6], %r0; {fence} bar.sync 0;
    @%p1 cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r8], 128; @%p1 cp.async.bulk.commit_group; {wait}
"""
FENCE, DONE = "fence.proxy.async.shared::cta;", "cp.async.bulk.wait_group 0;"


@pytest.mark.parametrize(
    "fence, wait, wrong",
    [
        (FENCE, DONE, []),
        ("", DONE, ["copy to global memory without fence.proxy.async"]),
        (FENCE, "", ["ended before bulk copies had read shared memory"]),
        (FENCE, "st.shared.b32 [%r6], 0;" + DONE, ["race: write over what is read"]),
        (FENCE, "cp.async.bulk.wait_group.read 0; st.shared.b32 [%r6], 0;", []),
    ],
)
def test_bytes_that_leave(fence, wait, wrong):
    done = run(STORE.format(fence=fence, wait=wait), results=[((32,), I32)])
    assert kinds(done) == wrong
    if not wrong:
        np.testing.assert_array_equal(done.outputs[0], np.arange(32))


def test_a_copy_of_odd_bytes():
    with pytest.raises(Fault, match="bulk copy of 120 bytes"):
        run(STORE.format(fence=FENCE, wait=DONE).replace("128;", "120;"), results=[((32,), I32)])


BOX = """
    @%p1 mbarrier.arrive.expect_tx.shared.b64 %d12, [%r9], 1024; mov.b64 %d14, maps; cvta.param.u64 %d14, %d14;
    mov.b32 %r20, {inner}; mov.b32 %r21, {outer};
    @%p1 cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r8], [%d14, {{%r20, %r21}}], [%r9];
"""
COPY = """
    mul.wide.u32 %d8, %r0, 32; cvt.u32.u64 %r7, %d8; add.s32 %r6, %r8, %r7; add.s64 %d9, %d1, %d8;
    ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r6]; st.global.v4.b32 [%d9], {%r1, %r2, %r3, %r4};
    ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r6+16]; st.global.v4.b32 [%d9+16], {%r1, %r2, %r3, %r4};
"""


@pytest.mark.parametrize("inner, outer", [(0, 0), (64, 3), (-8, -2), (70, 18), (3, 5)])
def test_a_box_of_a_tensor(inner, outer):
    """8 rows of 64 of a matrix of 20 by 96, some outside; swizzled by 128 bytes."""
    x = np.arange(20 * 96, dtype=U16).reshape(20, 96) + 1
    described = Described(0, 0, 2, [20, 96], [96, 1], 128, [8, 64])
    body = START + BOX.format(inner=inner, outer=outer) + WAIT + COPY
    done = run(body, [x], [((8, 8, 8), U16)], shared=3072, maps=[described])
    padded = np.zeros((60, 256), U16)
    padded[20:40, 96:192] = x
    wanted = padded[20 + outer : 28 + outer, 96 + inner : 160 + inner].reshape(8, 8, 8)
    rows, pieces = np.indices((8, 8))
    np.testing.assert_array_equal(done.outputs[0][rows, pieces ^ rows], wanted)
    assert not kinds(done)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"strides": (2, 190)}, "no multiples of 16"),
        ({"box": (64, 300)}, "box"),
        ({"box": (4, 8)}, "box"),
        ({"swizzle": 64}, "box rows of 128 bytes, swizzle 64"),
    ],
)
def test_what_no_tensor_map_may_be(changed, said):
    fields = {"base": 0, "size": 2, "sizes": (96, 20), "strides": (2, 192), "box": (64, 8), "swizzle": 128}
    tensor_map.TensorMap(**fields)
    with pytest.raises(Fault, match=said):
        tensor_map.TensorMap(**fields | changed)


def test_offsets_of_a_tensor_beyond_32_bits():
    large = tensor_map.TensorMap(2**46, 2, (64, 2**26), (2, 128), (64, 2), 128)
    places, there = large.places([0, 2**26 - 1], 8)
    assert places[:2].tolist() == [2**46 + 128 * (2**26 - 1), 2**46 + 128 * (2**26 - 1) + 8]
    assert there.tolist() == [True] * 16 + [False] * 16
