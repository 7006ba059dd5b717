"""Whether an engine of some sizes can be made where its model lies: found out by counting, before memory is spent."""

import jax
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.engine.sizes import Sizes
from gptoss_jax.model.params import Params
from gptoss_jax.parallel import memory, sharding
from gptoss_jax.parallel.sharding import Partition
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.options import Sampling

_HOST_BYTES = 64  # of a page's number in the lists of free ones


def state_bytes(config: Config, sizes: Sizes, cache_dtype: np.dtype, biases: int) -> int:
    """Bytes of an engine's state, all devices together.

    Args:
      cache_dtype: of keys and values.
      biases: that a request may have, as many as stop tokens.
    """
    scale = 4 if cache_dtype.itemsize == 1 else 0  # of each page and kv head
    page = 2 * config.num_key_value_heads * (sizes.page * config.head_dim * cache_dtype.itemsize + scale)
    sliding = sum(config.window(layer) is not None for layer in range(config.num_hidden_layers))
    pages = (config.num_hidden_layers - sliding) * sizes.full_pages + sliding * sizes.ring_pages
    row = sampling_state.columns([Sampling()], [0], vocab_size=config.vocab_size, slots=biases)
    row_bytes = sum(x.nbytes for x in jax.tree.leaves(row)) + 4 * (sizes.blocks + sizes.decode_ring)
    return pages * page + sizes.slots * row_bytes


def check(params: Params, config: Config, sizes: Sizes, cache_dtype: np.dtype, biases: int, *, adapters: int = 0) -> None:
    """Raises ValueError where the state of an engine does not fit the memory that is free; of a model without numbers all fits.

    Args:
      adapters: bytes of a device that those side by side take.
    """
    if not isinstance(params.embedding, jax.Array):
        return
    partition, device = params.partition, sharding.device_of(sharding.home(params.partition, params.embedding))
    wanted, free = state_bytes(config, sizes, cache_dtype, biases), memory.available(device)
    on_each = wanted if device.platform == "cpu" else wanted // _parts(partition)
    if free is not None and adapters > free:
        raise ValueError(
            f"the room for adapters must fit into memory; it takes {_short(adapters)} of {device}, which has {_short(free)} free; pass a "
            "smaller adapters or adapter_rank, or fewer adapter_targets."
        )
    _compare(on_each, None if free is None else free - adapters, sizes, str(device))
    _compare(_HOST_BYTES * (sizes.full_pages + sizes.ring_pages), memory.host() or None, sizes, "the host")


def _parts(partition: Partition | None) -> int:
    """Into how many parts the pages are divided."""
    return 1 if partition is None else partition.parts("pages") * partition.parts("kv_heads")


def _compare(wanted: int, free: int | None, sizes: Sizes, where: str) -> None:
    if free is not None and wanted > free:
        tokens = sizes.full_pages * sizes.page
        raise ValueError(
            f"slots and cache must fit into memory; {sizes.slots:,} slots and a cache of {tokens:,} tokens take {_short(wanted)} "
            f"of {where}, which has {_short(free)} free; pass smaller slots, context or cache_tokens."
        )


def _short(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number < 10**15 else f"{number // 10**9:,} GB"
