"""Activations on disk: what sites hold, row by row while a generation runs, and read back memory-mapped; or a capture in one file.

    with Folder("activations") as folder:
        sink = folder.request("first")
        sink.write("layers.3.residual_post", 0, rows)           # tokens 0 ... n of the request
    read("activations")["first"]["layers.3.residual_post"]      # [tokens, ...], of which only what is looked at is read

What takes the rows of one request has `write(name, start, array)`, and what takes those of several `request(key)`, which returns such a
one; a generation that streams what it captures asks for no more. When a request has ended its sink's `close()` may be called.

A folder holds REQUEST/NAME.npy, whole .npy files that any reader of NumPy's opens, and REQUEST/starts.jsonl, which says at which token of
its request each begins. Nothing waits in memory: each write is in the file when it returns, first its rows and then the header that
counts them, so that a process that is killed leaves whole files of all that was written. Nothing is synced: where a machine loses power,
what its system had not yet put on the disk is lost. Knows neither JAX nor the model.
"""

from gptoss_jax.research.activations.folder import Folder, Writer
from gptoss_jax.research.activations.npz import load, save
from gptoss_jax.research.activations.reading import Request, read

__all__ = ["Folder", "Request", "Writer", "load", "read", "save"]
