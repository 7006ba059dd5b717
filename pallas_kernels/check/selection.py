"""On which of the bench's cases, at gpt-oss' shapes, each kernel is checked."""

from pallas_kernels import bench
from pallas_kernels.dispatch import KERNELS

TOGETHER = "together"  # the kernels of a decode step one behind the other (`together`)
CHECKS = (*KERNELS, TOGETHER)
DECODING = tuple(name for name in KERNELS if name not in ("attention_prefill", "moe_grouped"))  # those that take part
PRESETS = ("20b", "120b")
_TOKENS = ("1 token", "16 tokens", "64 tokens")
_ROWS = [f"20b, {tokens}" for tokens in _TOKENS]  # both models are equally wide

_CASES = {  # kernel -> op of its cases, their names; "PRESET" is the model
    "project_qkv": ("projection.qkv", _ROWS),
    "project_out": ("projection.out", _ROWS),
    "unembed": ("projection.unembed", _ROWS),
    "attention_decode": (
        "attention.decode",
        ["20b, batch 1, 1k context", "20b, batch 64, 1k context", "20b, batch 16, 8k context", "20b, batch 16, 8k context, window 128"],
    ),
    "attention_prefill": (
        "attention.prefill",
        ["20b, 1k tokens after 0k", "20b, 8k tokens after 0k", "20b, 1k tokens after 0k, window 128"],
    ),
    "router": ("routing.router", ["PRESET, 1 token", "PRESET, 16 tokens"]),
    "route": ("routing.route", [f"PRESET, {tokens}" for tokens in _TOKENS]),
    "moe_gate_up": ("moe.gate_up", [f"PRESET, {tokens}" for tokens in _TOKENS]),
    "moe_down": ("moe.down", [f"PRESET, {tokens}" for tokens in _TOKENS]),
    "moe_grouped": ("moe.grouped", ["PRESET, 256 tokens", "PRESET, 1024 tokens"]),
    "add_norm": ("norm.add_norm", _ROWS),
    TOGETHER: (TOGETHER, ["PRESET, 1 token", "PRESET, 16 tokens"]),
}


def names(kernel: str, preset: str) -> list[str]:
    """Of the cases that say whether a kernel can be trusted with this model."""
    return [name.replace("PRESET", preset) for name in _CASES[kernel][1]]


def cases(kernel: str, preset: str) -> list[bench.Case]:
    """The same cases.

    Raises:
      ValueError: there is no such kernel or preset.
    """
    if kernel not in KERNELS or preset not in PRESETS:
        raise ValueError(f"a kernel of {', '.join(KERNELS)} is checked for one of {', '.join(PRESETS)}; got {kernel!r}, {preset!r}.")
    op, wanted = _CASES[kernel][0], names(kernel, preset)
    found = {case.name: case for case in bench.cases([op]) if case.op == op}
    return [found[name] for name in wanted]


def label(kernel: str, preset: str) -> str:
    """What a verdict is kept by: the kernel's name, and the model's where it has other shapes than another's."""
    return f"{kernel} ({preset})" if any("PRESET" in name for name in _CASES[kernel][1]) else kernel
