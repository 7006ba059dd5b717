"""Whether the tensors that a checkpoint holds are those that its config.json asks for. Headers only: no arrays, no devices."""

from collections.abc import Iterable
from pathlib import Path

from gptoss_jax.quoting import quoted
from gptoss_jax.weights import layouts
from gptoss_jax.weights.headers import Stored
from gptoss_jax.weights.safetensors import FLOATS

_LISTED = 20  # of each kind of mismatch


def check(wanted: dict[str, layouts.Tensor], stored: dict[str, Stored], directory: Path) -> None:
    """Raises one ValueError that lists every difference between what config.json asks for and what the headers hold."""
    shapes, dtypes = [], []
    for name in wanted.keys() & stored.keys():
        tensor, got = wanted[name], stored[name]
        allowed = ["U8"] if tensor.packed else list(FLOATS)
        if got.dtype not in allowed:
            dtypes.append(f"{name} (is {got.dtype}, must be {' or '.join(allowed)})")
        if got.shape != tensor.shape:
            shapes.append(f"{name} (is {list(got.shape)}, must be {list(tensor.shape)})")
    kinds = [
        ("missing", wanted.keys() - stored.keys()),
        ("surplus", stored.keys() - wanted.keys()),
        ("of the wrong shape", shapes),
        ("of the wrong dtype", dtypes),
    ]
    problems = "; ".join(f"{len(names)} {kind}: {listing(names)}" for kind, names in kinds if names)
    if problems:
        files = sorted({each.file.name for name, each in stored.items() if name not in wanted or each.shape != wanted[name].shape})
        problems += f"; see {listing(files)}" if files else ""
        raise ValueError(
            f"the tensors in {directory} must be those that its config.json describes; {problems}; "
            "download the checkpoint again, or correct its config.json."
        )


def listing(names: Iterable[str]) -> str:
    """Names for a sentence."""
    names = sorted(names)
    return ", ".join(name if len(name) <= 200 else quoted(name) for name in names[:_LISTED]) + (
        f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    )
