"""A capture in one .npz file."""

from collections.abc import Mapping
import os
import secrets
from typing import Any
import zipfile

import numpy as np

from gptoss_jax.quoting import quoted, said
from gptoss_jax.research.activations import layout


def save(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Values of `capture` into one .npz file, as `numpy.load` reads it: written whole or not at all, over what is there.

    Args:
      path: it ends with ".npz".
      values: by name; arrays of JAX's or NumPy's.
    """
    path = layout.path_of(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end with .npz; got {quoted(str(path))}; pass such a name.")
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"values must be arrays by name, one at least; got {quoted(values, 60)}; pass what capture returned.")
    for name, value in values.items():
        layout.named("a name", name)
        layout.check_kind(name, value.dtype if hasattr(value, "dtype") else layout.array_of(name, value).dtype)
    temporary = path.with_name(f".{path.name[: layout.LONGEST]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w") as zipped:
                for name, value in values.items():  # one at a time on the host
                    with zipped.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, layout.array_of(name, value), allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """What `save` wrote: arrays by name.

    Raises:
      ValueError: the file is no .npz of arrays, or damaged.
    """
    path = layout.path_of(path)
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as values:
                return {name: values[name] for name in values.files}
        except Exception as error:  # of zipfile, zlib or NumPy
            raise ValueError(f"path must be an .npz file of arrays; got {quoted(str(path))}, {said(error)}; pass one of save's.") from error
