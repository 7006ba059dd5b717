"""Writes an Orbax directory (`gptoss_jax.weights.orbax.store`), piece by piece, beside its name, which it gets last."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import json
import logging
import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from gptoss_jax.config import Config
from gptoss_jax.model.params import DOWN_AXES, GATE_UP_AXES, Layer, Params, Spec, expert_width, form_of, has_adapter
from gptoss_jax.parallel import processes
from gptoss_jax.weights import forms, locate
from gptoss_jax.weights.orbax import store, sums, whole

_CHUNK_BYTES = 8 << 20  # of a stored array: a device's part is read in whole chunks


def save(directory: str | os.PathLike, config: Config, params: Params, files: Mapping[str, bytes] | None = None) -> None:
    """Writes the parameters of a model; tiles become packed again and split experts stacked, one layer at a time. Args as `write`'s."""
    held, partition = form_of(params), params.partition

    def pieces() -> Iterator[tuple[str, Any]]:
        for name, piece in store.split(params).items():
            if isinstance(piece, Layer):
                gate_up = forms.stored(piece.moe.gate_up, GATE_UP_AXES, partition)
                down = forms.stored(piece.moe.down, DOWN_AXES, partition)
                piece = piece.replace(moe=piece.moe.replace(gate_up=gate_up, down=down))
            yield name, piece

    if has_adapter(params):
        raise ValueError("this model has an adapter beside its weights; save the adapter by itself (adapters.save), or merge it first.")
    if partition is None and jax.process_count() > 1:
        raise ValueError(
            f"a model that {jax.process_count()} processes save must lie on a mesh of them; it lies on one device; load it with mesh=."
        )
    write(
        directory,
        config,
        pieces(),
        experts="packed" if held in ("packed", "tiled") else "stacked",
        dtype=params.embedding.dtype.name,
        expert_hidden=expert_width(config, held, partition),
        files=files,
    )


def write(
    directory: str | os.PathLike,
    config: Config,
    pieces: Iterable[tuple[str, Any]],
    *,
    experts: store.Form,
    dtype: str,
    expert_hidden: int | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes an Orbax directory, which gets its name when it is whole. What a killed process leaves has another name (`whole.stopped`).

    Every process calls it, writes what its devices hold into the same directory, and returns when the last one is done.

    Args:
        directory: what to make; there must be nothing there yet.
        config: the geometry.
        pieces: names and trees of `store.split`, in any order; each is written before the next is asked for.
        experts: how they hold their experts.
        dtype: of what is neither packed nor always float32.
        expert_hidden: the experts' hidden width as they hold it; None for that of the config.
        files: what to put beside them; a config.json takes the place of the one that follows from config.

    Raises:
        ValueError: there is something, or pieces are not those of the config.
    """
    width = expert_hidden or config.intermediate_size
    wanted = store.table(config, dtype, experts, width)
    with whole.appearing(directory) as partial, _checkpointer() as checkpointer:
        params, first = partial / "params", processes.is_first()
        if first:
            params.mkdir()
            described = {"config.json": (json.dumps(config.to_dict(), indent=1) + "\n").encode()} | dict(files or {})
            for name, data in described.items():
                (partial / name).write_bytes(data)
        checksums: dict[str, list[int]] = {}
        for name, piece in pieces:
            arguments = [_save_args(wanted.pop(store.name_of(name, key), None), key, leaf) for key, leaf in store.named_leaves(piece)]
            arguments = jax.tree.unflatten(jax.tree.structure(piece), arguments)
            checkpointer.save(params / name, args=ocp.args.PyTreeSave(piece, save_args=arguments))
            checksums |= sums.of_piece(params / name, piece)
            del piece
        if wanted:
            raise ValueError(f"every piece of the model must be given; absent: {store.listing(wanted)}; give all of `store.split`.")
        checksums = sums.gathered(checksums, partial)
        if first:
            sizes = {path.relative_to(params).as_posix(): path.stat().st_size for path in sorted(params.rglob("*")) if path.is_file()}
            index = store.Index(experts, dtype, config.intermediate_size, width, sizes, checksums, sums.of_files(params, sizes))
            index = {"version": store.VERSION} | dataclasses.asdict(index)
            (params / locate.INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    """Orbax's, which otherwise tells an absl program everything that it does."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:  # 4-bit weights are as good as random
            yield checkpointer
    finally:
        logger.setLevel(level)


def _save_args(spec: Spec | None, key: str, leaf: Any) -> ocp.SaveArgs:
    """How an array of a piece is stored; raises ValueError if it is not what the table says."""
    if spec is None or (leaf.shape, leaf.dtype) != (spec.shape, spec.dtype):
        expected = f"{spec.dtype.name} {list(spec.shape)}" if spec else "not in the model"
        raise ValueError(f"{key} must be {expected}; got {leaf.dtype} {list(leaf.shape)}; make params for this config.")
    # A device has whole kv heads, which are never the longest axis, where Orbax would cut.
    heads = tuple(i for i, axis in enumerate(spec.axes) if axis == "kv_heads" and spec.nbytes > _CHUNK_BYTES)
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=heads)
