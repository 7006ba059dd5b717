"""What is measured on a GPU, in order of worth: each piece a program that there is, with the seconds that it may take.

In arguments {lines} is a file for JSON lines, {out} the folder of results, {peer} an interpreter with torch and transformers, {without}
the kernels that did not pass their check.
"""

from collections.abc import Sequence
import dataclasses

_TINY = "--preset=tiny"
_20B = "--preset=gpt-oss-20b"
_OFF = "--without=all"
_OURS = "--op=projection.qkv,projection.out,projection.unembed,attention,routing,moe,norm"  # and XLA's forms of the same
_OTHER_SHAPES = ("16 tokens", "64 tokens", "batch 16, 8k", "batch 64, 1k", "1k", "256 tokens", "1024 tokens")  # than one token
_CHECKED = ("--kernel=add_norm,route",)  # of the rehearsal: two kernels stand for all


@dataclasses.dataclass(frozen=True)
class Piece:
    """One measurement.

    Attributes:
      name: of its files.
      what: in a few words.
      command: module and arguments.
      rehearsal: the same on a CPU, at small shapes.
      limit: seconds, after which it is killed; what it has said until then counts.
      least: seconds; with fewer left it is not begun.
      gigabytes: of the device's memory that it needs.
      peer: whether it needs torch and transformers.
    """

    name: str
    what: str
    command: tuple[str, ...]
    rehearsal: tuple[str, ...]
    limit: float
    least: float
    gigabytes: float = 0
    peer: bool = False


_DECODE, _PREFILL, _BENCH = "benchmarks.decode", "benchmarks.prefill", "pallas_kernels.bench"
_SERVING, _PROFILE, _PEERS = "benchmarks.gpu_day.serving", "benchmarks.gpu_day.profile", "benchmarks.gpu_day.peers"
_CHECK, _REHEARSED = "pallas_kernels.check", "benchmarks.gpu_day.rehearsed"
_SMALL = (_TINY, "--new=2", "--repeats=1", "--context=16")
_SMALL_PEER = (_TINY, "--kind=decode", "--batch=1", "--prompt=8", "--new=2", "--repeats=1")


def _decode(preset: str, batch: str, *more: str) -> tuple[str, ...]:
    return (_DECODE, preset, f"--batch={batch}", "--context=1024", "--new=64", "--repeats=3", *more)


def _kernels(*chosen: str) -> tuple[str, ...]:
    return (_BENCH, "--out={lines}", *chosen)


PIECES = (
    Piece("check", "each kernel, right or not", (_CHECK, "--out={lines}"), (_CHECK, "--rehearse", "--out={lines}", *_CHECKED), 150, 30),
    Piece("decode-1", "20b's decode steps, batch 1", _decode(_20B, "1", "{without}"), (_DECODE, *_SMALL, "--batch=1"), 90, 30),
    Piece(
        "kernels-1",
        "kernels of a decode step, 1 token",
        _kernels(_OURS, "--name=20b, 1 token", "--name=20b, batch 1, 1k"),
        (_REHEARSED, "--out={lines}"),
        75,
        20,
    ),
    Piece(
        "decode-16-64",
        "20b's decode steps, batch 16 and 64",
        _decode(_20B, "16,64", "{without}"),
        (_DECODE, *_SMALL, "--batch=2"),
        90,
        30,
    ),
    Piece(
        "xla-1-16",
        "the same by XLA's forms, batch 1 and 16",
        _decode(_20B, "1,16", _OFF),
        (_DECODE, *_SMALL, "--batch=1", _OFF),
        90,
        30,
    ),
    Piece(
        "prefill",
        "20b's prompts of 1,024 and 8,192 tokens",
        (_PREFILL, _20B, "--prompt=1024,8192", "--repeats=3", "{without}"),
        (_PREFILL, _TINY, "--prompt=32", "--chunk=16", "--repeats=1"),
        75,
        30,
    ),
    Piece(
        "serving",
        "20b's engine under 1, 16 and 64 requests at once: TTFT, TPOT",
        (_SERVING, _20B, "--concurrency=1,16,64", "--input_len=1024", "--output_len=128", "{without}"),
        (_SERVING, _TINY, "--concurrency=1,2", "--input_len=8", "--output_len=40"),
        100,
        40,
    ),
    Piece(
        "profile",
        "which kernel takes what of a step",
        (_PROFILE, _20B, "--out={out}", "{without}"),
        (_PROFILE, _TINY, "--context=64", "--steps=4", "--out={out}"),
        60,
        25,
    ),
    Piece(
        "transformers-decode",
        "transformers' decode steps, batch 1 and 16",
        (_PEERS, _20B, "--kind=decode", "--peer_python={peer}", "--batch=1,16", "--prompt=1024", "--new=32", "--repeats=2"),
        (_PEERS, *_SMALL_PEER, "--peer_python={peer}"),
        150,
        60,
        50,
        True,
    ),
    Piece(
        "kernels-16-64",
        "kernels of a decode step, 16 and 64 tokens; prompts",
        _kernels(_OURS, *(f"--name=20b, {shape}" for shape in _OTHER_SHAPES)),
        (_REHEARSED, "--out={lines}", "--kernel=unembed"),
        120,
        30,
    ),
    Piece(
        "xla-prefill",
        "prompts by XLA's forms",
        (_PREFILL, _20B, "--prompt=1024", "--repeats=3", _OFF),
        (_PREFILL, _TINY, "--prompt=32", "--chunk=32", "--repeats=1", _OFF),
        60,
        30,
    ),
    Piece(
        "check-120b",
        "each kernel at 120b's shapes",
        (_CHECK, "--preset=120b", "--out={lines}", "--kernel=router,route,moe_gate_up,moe_down,moe_grouped,together"),
        (_CHECK, "--rehearse", "--preset=120b", "--out={lines}", "--kernel=route"),
        60,
        30,
    ),
    Piece(
        "decode-120b",
        "120b's decode steps, batch 1 and 16",
        _decode("--preset=gpt-oss-120b", "1,16", "{without}"),
        (_DECODE, *_SMALL, "--batch=3"),
        120,
        50,
        80,
    ),
    Piece(
        "transformers-prefill",
        "transformers' prompts",
        (_PEERS, _20B, "--kind=prefill", "--peer_python={peer}", "--batch=1", "--prompt=1024,8192", "--repeats=2"),
        (_PEERS, _TINY, "--kind=prefill", "--batch=1", "--prompt=8", "--repeats=1", "--peer_python={peer}"),
        120,
        60,
        50,
        True,
    ),
)


def command(piece: Piece, rehearse: bool, places: dict[str, str], without: Sequence[str]) -> list[str]:
    """Module and arguments, with what belongs into their braces."""
    given = piece.rehearsal if rehearse else piece.command
    left_out = f"--without={','.join(without)}" if without else ""
    whole = [argument.format(**places, without=left_out) if "{" in argument else argument for argument in given]
    return [argument for argument in whole if argument]
