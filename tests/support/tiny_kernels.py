"""Kernels of a few lines of PTX, run on the emulator's machine without Mosaic: each shows one rule."""

import jax
import numpy as np

from pallas_kernels.emulator import host, launch
from pallas_kernels.emulator.ptx import parse
from pallas_kernels.emulator.ptx.program import Program

_REGISTERS = ".reg .pred %p<8>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .f32 %f<64>; .reg .b64 %d<32>;"


def program(body: str, arrays: int, *, threads: int, maps: int = 0) -> Program:
    """A kernel whose parameters are pointers to so many arrays, in %d0, %d1, ..., then a parameter of tensor maps; %r0 is the thread."""
    params = [f".param .u64 .ptr .global .align 1 p{i}" for i in range(arrays)]
    params += [f".param .align 64 .b8 maps[{128 * maps}]"] if maps else []
    loads = "\n".join(f"ld.param.b64 %d{i}, [p{i}];" for i in range(arrays))
    return Program(
        parse.parse(f"""
        .version 8.8
        .target sm_90a
        .address_size 64
        .extern .shared .align 1024 .b8 memory[];
        .visible .entry tiny({", ".join(params)})
        .maxntid {threads}, 1, 1
        {{
            {_REGISTERS}
            {loads}
            mov.u32 %r0, %tid.x;
            {body}
            ret;
        }}
        """)
    )


def run(
    body: str,
    operands=(),
    results=(),
    *,
    threads: int = 32,
    grid=(1, 1, 1),
    cluster=(1, 1, 1),
    shared: int = 1024,
    maps=(),
    aliases=None,
    **options,
) -> launch.Result:
    """A launch of what `program` makes: operands and results are its arrays, in this order."""
    count = len(operands) + len(results)
    arguments = [host.Pointer(("arg", i)) for i in range(count)]
    if maps:
        arguments.append({128 * i: described for i, described in enumerate(maps)})
    its_host = host.Host(grid, threads, cluster, shared, arguments)
    shapes = [jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for shape, dtype in results]
    made = program(body, count, threads=threads, maps=len(maps))
    return launch.execute("tiny", made, its_host, options.pop("registers", 32), operands, shapes, aliases or {}, **options)


def kinds(result: launch.Result) -> list[str]:
    """What was reported."""
    return [finding.kind for finding in result.reports]
