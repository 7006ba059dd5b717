"""wgmma in a kernel of a few lines: 64 rows by 8 columns by 16, operands as PTX lays them out, and what may not be touched meanwhile."""

import numpy as np
import pytest
from tiny_kernels import kinds, run

from pallas_kernels.emulator import POLICIES, Fault
from pallas_kernels.emulator.chip import wgmma
from pallas_kernels.emulator.ptx.floats import bf16_to_f32, f32_to_bf16

F32, U16 = np.float32, np.uint16
ROWS, COLUMNS, DEPTH = 64, 8, 16
# Without a swizzle a core matrix is 8 rows of 16 bytes; A has 8 by 2 of them, B 1 by 2. Both are copied as they lie in global memory.
A_BYTES, B_BYTES = ROWS * DEPTH * 2, COLUMNS * DEPTH * 2


def descriptor(start: int, leading: int, stride: int) -> int:
    """Without a swizzle; bytes."""
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32


COPY = f"""
    mov.b32 %r9, memory; mul.wide.u32 %d8, %r0, 16; cvt.u32.u64 %r7, %d8; add.s32 %r6, %r9, %r7; add.s64 %d9, %d0, %d8;
    ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d9]; st.shared.v4.b32 [%r6], {{%r1, %r2, %r3, %r4}};
    setp.lt.u32 %p1, %r0, {B_BYTES // 16}; add.s64 %d9, %d1, %d8;
    @%p1 ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d9]; @%p1 st.shared.v4.b32 [%r6+{A_BYTES}], {{%r1, %r2, %r3, %r4}};
"""
START = f"""
    mov.f32 %f0, 0f00000000; mov.f32 %f1, 0f00000000; mov.f32 %f2, 0f00000000; mov.f32 %f3, 0f00000000;
    mov.b64 %d10, {descriptor(0x400, 128, 256)}; mov.b64 %d11, {descriptor(0x400 + A_BYTES, 128, 256)};
    mov.pred %p3, 1;
"""
PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %d10, %d11, %p3, 1, 1, 0, 0;"
COMMIT, WAIT = "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"
FENCE, PROXY = "wgmma.fence.sync.aligned;", "fence.proxy.async.shared::cta;"
STORE = "add.s64 %d9, %d2, %d8; st.global.v4.f32 [%d9], {%f0, %f1, %f2, %f3};"
WHOLE = [COPY, PROXY, "bar.sync 0;", START, FENCE, PRODUCT, COMMIT, WAIT, STORE]


def operands():
    """A and B in float32, and as they lie."""
    rng = np.random.default_rng(0)
    a, b = (f32_to_bf16(rng.standard_normal(shape).astype(F32)) for shape in ((ROWS, DEPTH), (COLUMNS, DEPTH)))
    laid = [x.reshape(-1, 8, 2, 8).transpose(0, 2, 1, 3).copy() for x in (a, b)]
    return bf16_to_f32(a), bf16_to_f32(b), laid


def launch(body, **options):
    a, b, laid = operands()
    done = run("\n".join(body), laid, [((128, 4), F32)], threads=128, shared=A_BYTES + B_BYTES, **options)
    return a @ b.T, done


def product(fragments: np.ndarray) -> np.ndarray:
    """[64, 8] of what threads hold: thread 32w + 4g + q has rows 16w + g and 16w + g + 8, columns 2q and 2q + 1."""
    return fragments.reshape(4, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4).reshape(ROWS, COLUMNS)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_product(policy):
    wanted, done = launch(WHOLE, policy=policy, observe=True)
    np.testing.assert_allclose(product(done.outputs[0]), wanted, rtol=1e-5, atol=1e-5)
    assert not kinds(done) and not done.notes
    (observed,) = done.observed.values()
    assert list(observed.wgmma.values()) == [1]


def test_products_are_added_up():
    again = WHOLE[: WHOLE.index(COMMIT)] + [PRODUCT] + WHOLE[WHOLE.index(COMMIT) :]
    wanted, done = launch(again)
    np.testing.assert_allclose(product(done.outputs[0]), 2 * wanted, rtol=1e-5, atol=1e-5)
    assert not kinds(done)


@pytest.mark.parametrize(
    "dropped, wrong",
    [
        (PROXY, "wgmma reads what was written without fence.proxy.async"),
        (FENCE, "accumulator written after the last wgmma.fence"),
    ],
)
def test_a_fence_that_is_missing(dropped, wrong):
    assert wrong in kinds(launch([part for part in WHOLE if part != dropped])[1])


@pytest.mark.parametrize("dropped", [WAIT, COMMIT])
def test_a_result_that_was_not_waited_for(dropped):
    with pytest.raises(Fault, match="wgmma result that was not waited for: %f0"):
        launch([part for part in WHOLE if part != dropped])


def test_an_operand_that_is_written_over_meanwhile():
    """What was touched counts as no number."""
    spoils = WHOLE[: WHOLE.index(WAIT)] + [f"st.shared.b32 [%r9+{A_BYTES}], 0;"] + WHOLE[WHOLE.index(WAIT) :]
    _, done = launch(spoils)
    assert "race: write over an operand of wgmma" in kinds(done)
    assert np.isnan(done.outputs[0]).any()


def test_an_accumulator_that_is_written_meanwhile():
    spoils = WHOLE[: WHOLE.index(WAIT)] + ["mov.f32 %f1, 0f3F800000;"] + WHOLE[WHOLE.index(WAIT) :]
    assert "accumulator written while wgmma was under way" in kinds(launch(spoils)[1])


def test_a_barrier_that_is_missing():
    """Some warp multiplies what another has not yet written: what it reads then counts as no number."""
    _, done = launch([part for part in WHOLE if part != "bar.sync 0;"], policy="order")
    assert np.isnan(done.outputs[0]).any() and "wgmma reads what is not there (counts as NaN)" in [note.kind for note in done.notes]


def test_an_operand_out_of_bounds():
    with pytest.raises(Fault, match="out of bounds: wgmma reads shared offsets"):
        launch([part.replace(str(descriptor(0x400, 128, 256)), str(descriptor(0x400, 128, 512))) for part in WHOLE])


@pytest.mark.parametrize("bits, mode", [(3, 1), (2, 2), (1, 3)])
def test_a_swizzled_operand(bits, mode):
    """Rows as wide as the swizzle; row r of eight has its pieces of 16 bytes exchanged by r, or what bits of it the pattern has."""
    wide = 16 << bits
    at = wgmma.layout(0x400 >> 4 | 8 * wide >> 4 << 32 | mode << 62, 16, wide // 2, False, 2) - 0x400
    rows, columns = np.indices((16, wide // 2))
    plain = rows * wide + columns * 2
    np.testing.assert_array_equal(at, plain ^ (plain >> 7 & (1 << bits) - 1) << 4)
    assert sorted(at.ravel()) == sorted(plain.ravel())


def test_a_swizzle_begins_where_its_pattern_does():
    with pytest.raises(Fault, match="its swizzle's pattern begins at multiples of 1024"):
        wgmma.layout(0x480 >> 4 | 1024 >> 4 << 32 | 1 << 62, 8, 16, False, 2)
