"""Checksums of what is saved: of each chunk of each array, from the values as they are held, by the process whose device holds them.

Small files, which hold Orbax's and TensorStore's own descriptions, have one each beside.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any
import zlib

import jax
import numpy as np

from gptoss_jax.parallel import processes
from gptoss_jax.weights import locate
from gptoss_jax.weights.orbax import chunks, store
from gptoss_jax.weights.orbax.store import Index, Stored
from gptoss_jax.weights.watching import Watch

_UNKNOWN = -1
_SMALL = 1 << 20  # bytes of a file that is compared as a whole


def of_piece(piece: Path, tree: Any) -> dict[str, list[int]]:
    """Of a piece that has been written, by names in `Params`: the chunks that this process holds in the order of the grid, others -1.

    Args:
        piece: its directory, for how its arrays are cut.
        tree: its arrays.
    """
    cut = store.scan([piece])
    return {name: _of_array(cut[name], leaf) for key, leaf in store.named_leaves(tree) if (name := store.name_of(piece.name, key)) in cut}


def _of_array(stored: Stored, array: Any) -> list[int]:
    found = np.full(stored.grid, _UNKNOWN, np.int64)
    if isinstance(array, jax.Array):
        parts = [(part.index, part.data) for part in array.addressable_shards if part.replica_id == 0]
    else:
        parts = [(tuple(slice(0, size) for size in stored.shape), array)]
    for index, data in parts:
        begins = [one.indices(size)[0] for one, size in zip(index, stored.shape, strict=True)]
        own = tuple((begin, begin + size) for begin, size in zip(begins, data.shape, strict=True))
        data = np.asarray(data)
        for place in chunks.touched(stored, own):
            box = chunks.box_of(stored, place)
            if all(start <= first and last <= stop for (first, last), (start, stop) in zip(box, own, strict=True)):
                cut = tuple(slice(first - begin, last - begin) for (first, last), begin in zip(box, begins, strict=True))
                found[place] = chunks.checksum(data[cut])
    return found.reshape(-1).tolist()


def gathered(own: Mapping[str, list[int]], folder: Path) -> dict[str, list[int]]:
    """Those of all processes together; an array that has a chunk which no process held whole has none.

    Every process must call this, with the same folder, on a file system that they share.
    """
    every = [own]
    if processes.count() > 1:
        mine = folder / f"sums-{jax.process_index()}.json"
        mine.write_text(json.dumps(own), encoding="utf-8")
        processes.meet(f"checksums are in {folder}")
        if processes.is_first():
            files = [folder / f"sums-{number}.json" for number in range(processes.count())]
            every = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            for file in files:
                file.unlink()
    merged = {name: np.max([each[name] for each in every], axis=0).tolist() for name in own}
    return {name: sums for name, sums in merged.items() if _UNKNOWN not in sums}


def of_files(params: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Of the small ones among files under params/."""
    return {name: zlib.crc32((params / name).read_bytes()) for name, size in sizes.items() if size <= _SMALL}


def check_files(params: Path, index: Index, watch: Watch) -> None:
    """Compares the small files with their checksums; after the arrays, so that damage to an array is told by its name."""
    wanted = index.file_checksums if watch.verify else {}
    got = of_files(params, {name: index.files[name] for name in wanted if name in index.files})
    if wrong := [name for name, checksum in got.items() if checksum != wanted[name]]:
        watch.found(
            f"the files under {params} must be as they were saved; other checksums than {locate.INDEX} says have: {store.listing(wrong)}; "
            "copy them again, or pass verify=False to load it so."
        )
