"""Calls that together go through what the kernels admit, and what they compile to for an absent Hopper, in processes with a time limit.

An axis at a time goes from end to end, the others as small as they may be; where two meet in a kernel's code, both do. `EVERY` has them
by name: a function without arguments gives a call, (function, its arguments' shapes).
"""

from collections.abc import Callable, Iterable
import functools
import json
import os
from pathlib import Path
import queue
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp

from pallas_kernels import aot, norm, projection, routing
from pallas_kernels.attention import paged_attention
from pallas_kernels.moe import decode, mosaic, tuning
from pallas_kernels.mxfp4.tiles import Tiles, tiled_shapes

ROOT = Path(__file__).parents[2]
START = 60  # seconds that a process has for its imports
Call = tuple[Callable, tuple]
f32, bf16, i32, u32 = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint32))
kernel = functools.partial(functools.partial, implementation="mosaic")


def attention(G: int, T: int, R: int, window: int | None, K: int = 1, B: int = 1) -> Call:
    pages = bf16((B * R + 1, K, 64, 64))
    rows = i32((B, R)), i32((B, T)), i32((B,))
    return kernel(paged_attention, window=window), (bf16((B, T, G * K, 64)), pages, pages, *rows, f32((G * K,)))


def qkv(M: int, D: int = 128, G: int = 1, K: int = 1, page: int = 64, dtype=bf16) -> Call:
    pages = bf16((3, K, page, 64))
    tables = f32((M, 32)), f32((M, 32))
    arguments = (dtype((M, D)), f32((M,)), bf16((K, G + 2, 64, D)), f32((K, G + 2, 64)), *tables, pages, pages, i32((M,)), i32((M,)))
    return kernel(projection.project_qkv, eps=1e-5), arguments


def out(M: int, C: int = 128, D: int = 64, dtype=bf16) -> Call:
    return kernel(projection.project_out), (dtype((M, C)), bf16((D, C)), f32((D,)), f32((M, D)), f32((D,)))


def unembed(M: int, D: int = 128, V: int = 64, dtype=bf16) -> Call:
    return kernel(projection.unembed, eps=1e-5), (dtype((M, D)), f32((M,)), bf16((V, D)))


def add_norm(M: int, D: int = 64, A: int = 1) -> Call:
    return kernel(norm.add_norm), (f32((M, D)), f32((A, M, D)), jax.ShapeDtypeStruct((M,), bool), f32((D,)))


def route(M: int, E: int, A: int = 1) -> Call:
    shapes = f32((M, routing.reference.columns(E))), f32((E,))
    return kernel(routing.route, num_active=A, width=64, eps=1e-5), shapes


def experts(M: int, E: int, A: int = 1, D: int = 64, F: int = 64) -> Call:
    """Both launches of a decode step."""

    def both(rows, routing, up, b1, down, b2):
        h = kernel(decode.gate_up, num_active=A, limit=7.0)(rows, routing, up, b1)
        return kernel(decode.down, num_active=A)(h, routing, down, b2)

    return both, (bf16((M, D)), _routing(E), *_weights(E, D, F))


def grouped(row: int, E: int = 4, D: int = 64, F: int = 64, M: int = 65, A: int = 1) -> Call:
    """Both products of many tokens, cut as a row of the table of tuning says."""

    def products(*arguments):
        before, tuning.grouped = tuning.grouped, lambda pairs: tuning.GROUPED[row]
        try:
            return mosaic.many(*arguments, limit=7.0)
        finally:
            tuning.grouped = before

    return products, (f32((M, D)), i32((M, A)), f32((M, A)), *_weights(E, D, F))


def _routing(E: int) -> routing.Routing:
    rows = routing.ROWS
    return routing.Routing(f32((E, rows)), i32((E, rows)), i32((-(-E // rows) * rows,)), f32((rows,)))


def _weights(E: int, D: int, F: int) -> tuple:
    """gate_up, its bias, down, its bias."""
    tiles = lambda shape, interleaved: Tiles(*(u32(s) for s in tiled_shapes(shape, interleaved)))
    return tiles((E, 2 * F, D), 2), f32((E, 2 * F)), tiles((E, D, F), 1), f32((E, D))


def _calls() -> Iterable[tuple[Callable, dict]]:
    """What `EVERY` holds, one axis after the other."""
    for G in (1, 2, 4, 8, 16, 32, 64):
        for T in (1, 64 // G, 64 // G + 1, 200):  # the last of few queries, the first of many
            for R in (1, 4, 5, 32, 33):  # where the table of tuning changes
                yield from ((attention, dict(G=G, T=T, R=R, window=window)) for window in (None, 1, 128))
    for T in range(1, 65):
        yield attention, dict(G=1, T=T, R=2, window=None)
    for K, B in ((2, 1), (3, 2), (8, 5), (64, 1), (1, 300)):
        for T in (1, 70):
            yield attention, dict(G=1 if K == 64 else 8, T=T, R=40, window=None, K=K, B=B)
    for M in range(1, 65):
        yield from ((op, dict(M=M)) for op in (qkv, out, unembed))
        yield from ((op, dict(M=M, dtype=f32)) for op in (qkv, out, unembed) if M in (1, 64))
        yield route, dict(M=M, E=32, A=4)
        yield experts, dict(M=M, E=8, A=2, D=128, F=128)
    for tiles in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 45, 46, 47, 64, 90, 128):
        for M in (1, 16, 64):
            yield qkv, dict(M=M, D=64 * tiles)
            yield out, dict(M=M, C=64 * tiles)
            yield out, dict(M=M, D=64 * tiles)
            yield unembed, dict(M=M, D=64 * tiles)
            yield unembed, dict(M=M, V=64 * tiles)
            yield experts, dict(M=M, E=2, D=64 * tiles)
            yield experts, dict(M=M, E=2, F=64 * tiles)
    for G, K in ((1, 5), (2, 3), (3, 1), (8, 8), (64, 1), (5, 7)):
        yield from ((qkv, dict(M=3, G=G, K=K, page=page)) for page in (1, 16, 64))
    for tiles in (1, 2, 3, 45, 64, 90, 127, 128, 197, 198):
        most = 229_376 // (64 * (tiles + 1)) - 2  # bytes a value: four times the terms, and 14 more
        yield from ((add_norm, dict(M=3, D=64 * tiles, A=A)) for A in (1, 2, 4, 8, 16) if 4 * A + 12 <= most)
    yield from ((add_norm, dict(M=M, D=128, A=4)) for M in (1, 64, 65, 5000))
    for E in range(1, 129):
        yield route, dict(M=64, E=E, A=min(4, E))
    for E in (1, 7, 24, 29, 32, 64, 65, 96, 127, 128):
        yield from ((route, dict(M=M, E=E, A=min(4, E))) for M in (1, 9))
        yield from ((route, dict(M=64, E=E, A=A)) for A in range(1, 9) if A <= E)
        yield from ((experts, dict(M=M, E=E, A=min(4, E))) for M in (1, 16, 64))
        yield from ((grouped, dict(row=row, E=E, A=min(4, E))) for row in (0, len(tuning.GROUPED) - 1))
    for row in range(len(tuning.GROUPED)):
        for tiles in (1, 2, 3, 4, 5, 7, 45, 46, 128):
            yield grouped, dict(row=row, D=64 * tiles)
            yield grouped, dict(row=row, F=64 * tiles)


def _named(op: Callable, options: dict) -> str:
    words = (f"{name} {'float32' if value is f32 else value}" for name, value in options.items())
    return f"{op.__name__} {', '.join(words)}"


EVERY = {_named(op, options): functools.partial(op, **options) for op, options in _calls()}


def compiled(names: Iterable[str], seconds: float) -> dict[str, dict | str]:
    """For each call its kernels, [name, registers, spilled bytes, wgmma] by name, or why there are none, in words.

    Args:
      names: of `EVERY`.
      seconds: that a call may take. One that takes longer is ended, and a new process goes on with the next.
    """
    names, found = list(names), {}
    while names:
        found |= _in_a_process(names, seconds)
        names = [name for name in names if name not in found]
    return found


def _in_a_process(names: list[str], seconds: float) -> dict[str, dict | str]:
    """Of as many of the names as a process gets through."""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    child = subprocess.Popen(
        [sys.executable, "-m", "kernel_domain"], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    lines, found = queue.SimpleQueue(), {}

    def read():
        for line in child.stdout:
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        child.stdin.write(json.dumps(names))
        child.stdin.close()
        for i, name in enumerate(names):
            try:
                line = lines.get(timeout=seconds + (START if i == 0 else 0))
            except queue.Empty:
                return found | {name: f"not compiled after {seconds} seconds"}
            if not line:
                return found | {name: f"ended the process: exit status {child.wait()}"}
            found[name] = json.loads(line)
        return found
    finally:
        child.kill()
        child.wait()
        reader.join()
        child.stdout.close()


def main() -> None:
    """Compiles the calls that standard input names; a line of JSON on standard output for each."""
    for name in json.load(sys.stdin):
        function, arguments = EVERY[name]()
        try:
            kernels = aot.compile(function, *arguments, xla_kernels=False).pallas_kernels
            told = {k.name: [k.registers, k.spill_bytes + k.stack_bytes, k.wgmma] for k in kernels}
        except Exception as error:  # what the compiler raises is what is looked for
            told = f"{type(error).__name__}: {str(error)[:500]}"
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
