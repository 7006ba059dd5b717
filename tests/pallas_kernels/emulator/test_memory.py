"""What lanes do to memory, in kernels of a few lines: values, bounds, races, what is known of other clusters."""

import numpy as np
import pytest
from tiny_kernels import kinds, run

from pallas_kernels.emulator import Fault
from pallas_kernels.emulator.chip import memory

I32 = np.int32
EVERY_LANE = "mul.wide.u32 %d8, %r0, 4; add.s64 %d9, %d0, %d8;"  # %d9: the thread's word of array 0


def test_loads_and_stores():
    body = f"{EVERY_LANE} add.s64 %d10, %d1, %d8; ld.global.b32 %r1, [%d9]; add.s32 %r2, %r1, 5; st.global.b32 [%d10], %r2;"
    x = np.arange(64, dtype=I32)
    done = run(body, [x], [((64,), I32)], threads=64)
    np.testing.assert_array_equal(done.outputs[0], x + 5)
    assert not done.reports and not done.notes
    assert done.written(0).all()


def test_vectors_and_narrow_loads():
    body = """
        mul.wide.u32 %d8, %r0, 16; add.s64 %d9, %d1, %d8; mul.wide.u32 %d10, %r0, 1; add.s64 %d11, %d0, %d10;
        ld.global.s8 %r1, [%d11]; ld.global.u8 %r2, [%d11]; mov.b32 %r3, 7; st.global.v4.b32 [%d9], {%r1, %r2, %r3, %r0};
    """
    x = np.arange(-16, 16).astype(np.int8)
    (out,) = run(body, [x], [((32, 4), I32)]).outputs
    np.testing.assert_array_equal(out, np.stack([x, x.view(np.uint8), np.full(32, 7), np.arange(32)], 1))


@pytest.mark.parametrize(
    "offset, said",
    [
        (4, r"4 bytes past the end of result 0 \(128 bytes\)"),
        (-8, r"8 bytes before the beginning of result 0 \(128 bytes\)"),
        (-1024, r"1,024 bytes before the beginning of result 0 \(128 bytes\)"),
        (-65536, r"4 bytes past the end of operand 0 \(512 bytes\)"),
    ],
)
def test_out_of_bounds(offset, said):
    """Said from the nearest array's nearest end."""
    with pytest.raises(Fault, match=rf"out of bounds: 4 bytes at global address 0x\w+, {said}\n.*st.global"):
        run(f"add.s64 %d0, %d1, 0; {EVERY_LANE} st.global.b32 [%d9+{offset}], %r0;", [np.zeros(128, I32)], [((32,), I32)])


def test_lanes_in_two_arrays():
    """Where that is, is said from the array of the first lane."""
    body = "setp.eq.u32 %p1, %r0, 0; selp.b64 %d9, %d1, %d0, %p1; st.global.b32 [%d9], %r0;"
    with pytest.raises(Fault, match=r"bytes before the beginning of result 0 \(128 bytes\)"):
        run(body, [np.zeros(32, I32)], [((32,), I32)])


def test_misaligned():
    with pytest.raises(Fault, match="misaligned: 8 bytes"):
        run(f"{EVERY_LANE} st.global.b64 [%d9], %d8;", results=[((64,), I32)])


def test_inputs_are_not_written():
    with pytest.raises(Fault, match="write to operand 0, which is an input"):
        run(f"{EVERY_LANE} st.global.b32 [%d9], %r0;", [np.zeros(32, I32)])


def test_an_operand_that_is_written_over_is_a_copy():
    x = np.arange(32, dtype=I32)
    body = f"{EVERY_LANE} ld.global.b32 %r1, [%d9]; neg.s32 %r2, %r1; st.global.b32 [%d9], %r2;"
    (out,) = run(body, [x], [((32,), I32)], aliases={0: 0}).outputs
    np.testing.assert_array_equal(out, -np.arange(32))
    np.testing.assert_array_equal(x, np.arange(32))


def test_a_register_that_was_never_written():
    with pytest.raises(Fault, match="register that was never written: %r5"):
        run("add.s32 %r1, %r5, 1;")


@pytest.mark.parametrize("value, wrong", [("%r0", ["race: write over what was not written before"]), ("7", [])])
def test_warps_that_write_one_word(value, wrong):
    """Of the same value nothing depends on who is last."""
    done = run(f"mov.b32 %r1, {value}; st.global.b32 [%d0], %r1;", results=[((1,), I32)], threads=64)
    assert [kind for kind in kinds(done) if "read" not in kind][:1] == wrong


def test_clusters_that_read_what_others_wrote():
    body = "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 st.global.b32 [%d0], %r0; @!%p1 ld.global.b32 %r2, [%d0];"
    found = {kind for seed in range(4) for kind in kinds(run(body, results=[((1,), I32)], grid=(2, 1, 1), seed=seed))}
    assert found & {"race: read of what was not written before", "race: write over what is read"}


SHARED = "mov.b32 %r9, memory; shl.b32 %r8, %r0, 2; add.s32 %r7, %r9, %r8;"  # %r7: the thread's word of shared memory


@pytest.mark.parametrize("between, wrong", [("bar.sync 0;", []), ("", ["race: read of what was not written before"])])
def test_a_block_needs_a_barrier(between, wrong):
    """Each warp reads what the other wrote."""
    body = f"{SHARED} st.shared.b32 [%r7], %r0; {between} xor.b32 %r6, %r8, 128; add.s32 %r5, %r9, %r6; ld.shared.b32 %r4, [%r5];"
    assert {kind for seed in range(3) for kind in kinds(run(body, threads=64, seed=seed))} >= set(wrong)
    assert wrong or not kinds(run(body, threads=64))


def test_what_was_never_written_is_noted():
    done = run(f"{SHARED} ld.shared.b32 %r1, [%r7];")
    assert [note.kind for note in done.notes] == ["uninitialised read"]


@pytest.mark.parametrize("rank, wrong", [("0", True), ("1", False)])
def test_shared_memory_of_a_cluster(rank, wrong):
    """Both blocks write a word of block 0's, or of the other's."""
    body = f"""
        {SHARED} mov.u32 %r1, %cluster_ctarank; st.shared.b32 [%r7], %r1;
        barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
        xor.b32 %r2, %r1, {rank}; mapa.shared::cluster.u32 %r3, %r7, %r2; ld.shared::cluster.b32 %r4, [%r3];
        mul.wide.u32 %d8, %r1, 4; add.s64 %d9, %d0, %d8; st.global.b32 [%d9], %r4;
    """
    (out,) = run(body, results=[((2,), I32)], grid=(2, 1, 1), cluster=(2, 1, 1)).outputs
    assert (out.tolist() == [0, 1]) == wrong


def test_a_large_region_has_a_shadow_where_it_is_touched():
    """8 GB of which a few bytes are written: offsets beyond 32 bits, and no memory for what nobody touches."""
    size = 2**33
    region = memory.Region("large", memory.GLOBAL_BASE, np.zeros(size, np.uint8), 4, shadow=True, initialised=False, sparse=True)
    offsets = np.array([0, 2**31, 2**32 + 6, size - 2])
    places = region.cells(offsets, 2)
    assert [region.offset(place) for place in places] == offsets.tolist()
    assert len(region.agent) <= 8 * memory.CHUNK
    region.version[places[2]] = 1
    region.begin_cluster(1)
    assert region.before[0][region.cells(offsets, 2)].tolist() == [False, False, True, False]
