"""PTX text to instructions, and the host's MLIR to a launch."""

import pytest
from tiny_kernels import program

from pallas_kernels.emulator import Fault, host
from pallas_kernels.emulator.ptx.parse import Address, parse

KERNEL = """
.version 9.0
.target sm_90a
.file 1 "/somewhere/kernel.py"
.extern .shared .align 1024 .b8 memory[];
.visible .entry name_of_it(
    .param .u64 .ptr .global .align 1 first,
    .param .u32 second,
    .param .align 64 .b8 third[256]
)
.reqntid 128, 1, 1
{
    .reg .pred %p<2>; .reg .b32 %r<4>; .reg .b64 %rd<3>; // registers
    .loc 1 12 3
    ld.param.b64 %rd1, [first];
    @!%p1 st.shared.v2.b32 [%r1+16], {%r2, 0f3F800000};
    { .reg .pred P1; AGAIN: mbarrier.try_wait.parity.shared.b64 P1, [%r1], %r2; @P1 bra DONE; bra AGAIN; DONE: }
    { .reg .pred P1; AGAIN: setp.eq.u32 P1, %r1, -1; @P1 bra AGAIN; }
    shfl.sync.bfly.b32 %r1|%p1, %r2, 1, 31, -1;
    cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [memory-8];
    ret;
}
"""


def test_a_kernel():
    kernel = parse(KERNEL)
    assert (kernel.name, kernel.threads) == ("name_of_it", 128)
    assert kernel.params == {"first": (0, 8), "second": (8, 4), "third": (64, 256)}
    load, store, wait, done, again, *_ = kernel.code
    assert load.operands == ["%rd1", Address("first", 0)] and load.loc == "/somewhere/kernel.py:12"
    assert store.predicate == ("%p1", True) and store.operands == [Address("%r1", 16), ("%r2", ("f32", 0x3F800000))]
    assert wait.operands[0] == "P1@1" and done.predicate == ("P1@1", False)
    assert [i.operands for i in (done, again)] == [[5], [2]], "labels are those of the braces around"
    assert kernel.code[6].operands == [5]
    assert kernel.code[7].operands[0] == ("%r1", "%p1")
    assert kernel.code[8].operands == [Address("%r1", 0), Address("%rd1", 0, ("%r2", "%r3")), Address("memory", -8)]


def test_what_a_program_reads_is_known_by_name():
    made = program("add.s32 %r1, %r2, 5;", 0, threads=32)
    assert [name for name, _ in made.sources[-2]] == ["%r2"]


HOST = """
  func.func @tiny_mosaic_gpu(%arg0: !llvm.ptr, %arg1: !llvm.ptr) attributes {llvm.emit_c_interface} {
    %0 = llvm.mlir.constant(2 : i64) : i64
    %1 = llvm.mlir.constant(1 : i64) : i64
    %two = llvm.mlir.constant(2048 : i32) : i32
    %10 = llvm.getelementptr %arg1[1] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr
    %11 = llvm.load %10 : !llvm.ptr -> !llvm.ptr
    %u = llvm.mlir.undef : !llvm.struct<(ptr, ptr, i64, array<2 x i64>, array<2 x i64>)>
    %12 = llvm.insertvalue %11, %u[1] : !llvm.struct<(ptr, ptr, i64, array<2 x i64>, array<2 x i64>)>
    %13 = llvm.insertvalue %1, %12[2] : !llvm.struct<(ptr, ptr, i64, array<2 x i64>, array<2 x i64>)>
    %14 = llvm.insertvalue %0, %13[4, 0] : !llvm.struct<(ptr, ptr, i64, array<2 x i64>, array<2 x i64>)>
    %15 = llvm.insertvalue %1, %14[4, 1] : !llvm.struct<(ptr, ptr, i64, array<2 x i64>, array<2 x i64>)>
    %m = builtin.unrealized_conversion_cast %15 : !llvm.struct<(ptr, ptr, i64, array<2 x i64>, array<2 x i64>)> to memref<8x2xf32>
    %s = memref.subview %m[3, 1] [4, 1] [1, 1] : memref<8x2xf32> to memref<4x1xf32, strided<[2, 1], offset: 7>>
    %c = builtin.unrealized_conversion_cast %s : memref<4x1xf32> to !llvm.struct<(ptr, ptr, i64)>
    %20 = llvm.extractvalue %c[1] : !llvm.struct<(ptr, ptr, i64)>
    %21 = llvm.extractvalue %c[2] : !llvm.struct<(ptr, ptr, i64)>
    %22 = llvm.mul %21, %0 : i64
    %23 = llvm.ptrtoint %20 : !llvm.ptr to i64
    %24 = llvm.add %23, %22 : i64
    %25 = llvm.inttoptr %24 : i64 to !llvm.ptr
    gpu.launch_func @k::@k blocks in (%0, %1, %1) threads in (%two, %1, %1) : i64 dynamic_shared_memory_size %two args(%25 : !llvm.ptr)
  }
"""


def test_a_host():
    """Offsets of memrefs are followed through subviews: 1 + 3 * 2 + 1 elements, of two bytes as the text multiplies."""
    read = host.read(HOST)
    assert (read.grid, read.threads, read.cluster, read.shared_bytes) == ((2, 1, 1), 2048, (1, 1, 1), 2048)
    assert read.arguments == [host.Pointer(("arg", 1), 16)]


@pytest.mark.parametrize("line", ["%3 = llvm.weird %1 : i64", "scf.if %1 {", "call @other(%1) : (i64) -> ()"])
def test_what_a_host_may_not_do(line):
    with pytest.raises(NotImplementedError, match="the host's part of a kernel does what is not known here"):
        host.read(HOST.replace("%10 =", f"{line}\n    %10 ="))


def test_a_host_without_a_launch():
    with pytest.raises(Fault, match="no launch"):
        host.read("")


@pytest.mark.parametrize(
    "line, said",
    [
        (".local .align 4 .b8 __local_depot0[28];", "local memory is not modelled in the emulator: a thread of tiny has 28 bytes of it"),
        ("mov.b64 %d1, somewhere;", r"does not know the instruction mov\.b64 \(mov\.b64 %d1, somewhere\)"),
    ],
)
def test_what_is_not_modelled(line, said):
    """The kernel is not to blame."""
    with pytest.raises(NotImplementedError, match=said):
        program(line, 1, threads=32)
