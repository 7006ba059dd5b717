"""The paged cache of keys and values: pages of positions, an ordinary table for full layers and a ring for sliding ones.

A page holds `page` consecutive positions of one sequence for every kv head of one layer. Block b of row r lies in page
`table[r, b % R]`. The full layers' table has an entry for every block of the context. The sliding layers' has just enough
for a window and one chunk of new tokens, so that older pages are written over.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Axes, Partition, Place, check_rows
from gptoss_jax.quoting import quoted
from pallas_kernels.attention import Fp8Pages, fp8_pages

PAGE = 64
PAGES: Axes = ("pages", "kv_heads", None, None)
TABLE: Axes = ("batch", None)


@flax.struct.dataclass
class Cache:
    k: tuple[jax.Array | Fp8Pages, ...]  # per layer [P, K, page, H], after RoPE
    v: tuple[jax.Array | Fp8Pages, ...]  # per layer [P, K, page, H]
    full_table: jax.Array  # [B, R] int32 page of each block, for full layers
    ring_table: jax.Array  # [B, R'] int32 likewise for sliding layers, R' <= R
    length: jax.Array  # [B] int32 tokens held

    def table(self, window: int | None) -> jax.Array:
        """The page table of a layer with this window."""
        return self.full_table if window is None else self.ring_table


def init_cache(
    config: Config,
    batch: int,
    context: int,
    *,
    chunk: int,
    dtype="bfloat16",
    page_size: int = PAGE,
    partition: Place = None,
) -> Cache:
    """An empty cache, every row with pages of its own.

    Args:
      batch: rows (B).
      context: most tokens a row will hold.
      chunk: most new tokens that one `extend` adds to a row; sliding layers hold window + chunk.
      dtype: of keys and values; "float8_e4m3fn" for `Fp8Pages`.
      page_size: positions a page.
      partition: how it lies on a mesh, the params' own; a row's pages lie on the devices that have the row. Or the device where it lies.
    """
    for name, value in (("batch", batch), ("context", context), ("chunk", chunk), ("page_size", page_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {quoted(value)}.")
    blocks = -(-context // page_size)
    ring = min(blocks, ring_blocks(config, chunk, page_size))
    own = lambda entries: np.arange(batch * entries, dtype=np.int32).reshape(batch, entries)
    pages = {"full_pages": batch * blocks, "ring_pages": batch * ring}
    return make_cache(config, own(blocks), own(ring), dtype=dtype, page_size=page_size, partition=partition, **pages)


def ring_blocks(config: Config, new: int, page_size: int = PAGE) -> int:
    """Most blocks that a row of a sliding layer needs at a time, where queries are of up to `new` consecutive positions."""
    return -(-(config.sliding_window - 1 + new - 1) // page_size) + 1


def make_cache(
    config: Config,
    full_table: np.ndarray,  # [B, R] int32
    ring_table: np.ndarray,  # [B, R'] int32
    *,
    full_pages: int,
    ring_pages: int,
    dtype="bfloat16",
    page_size: int = PAGE,
    partition: Place = None,
) -> Cache:
    """An empty cache of so many pages a full and a sliding layer, whichever row they belong to."""
    check_rows(partition, len(full_table))
    page = (config.num_key_value_heads, page_size, config.head_dim)

    def pages(layer: int) -> jax.Array | Fp8Pages:
        count = full_pages if config.window(layer) is None else ring_pages
        lies = sharding.of(partition, PAGES)
        if jnp.dtype(dtype) == fp8_pages.DTYPE:
            return fp8_pages.empty((count, *page), values_on=lies, scale_on=sharding.of(partition, PAGES[:2]))
        return jnp.zeros((count, *page), jnp.dtype(dtype), device=lies)

    batch, layers = len(full_table), range(config.num_hidden_layers)
    return Cache(
        k=tuple(pages(i) for i in layers),
        v=tuple(pages(i) for i in layers),
        full_table=sharding.put(full_table, partition, TABLE),
        ring_table=sharding.put(ring_table, partition, TABLE),
        length=sharding.put(np.zeros(batch, np.int32), partition, TABLE[:1]),
    )


def cache_bytes(config: Config, batch: int, context: int, *, chunk: int, dtype="bfloat16", page_size: int = PAGE) -> int:
    """Bytes of the cache that `init_cache` would make, without making it."""
    make = lambda: init_cache(config, batch, context, chunk=chunk, dtype=dtype, page_size=page_size)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make)))


def cache_axes(cache: Cache) -> Cache:
    """The logical axes of a cache's arrays, in a tree like it."""
    k, v = (tuple(map(pages_axes, pages)) for pages in (cache.k, cache.v))
    return Cache(k=k, v=v, full_table=TABLE, ring_table=TABLE, length=TABLE[:1])


def pages_axes(pages: jax.Array | Fp8Pages) -> Axes | Fp8Pages:
    """The logical axes of a layer's keys or values, in a tree like them."""
    return Fp8Pages(PAGES, PAGES[:2]) if isinstance(pages, Fp8Pages) else PAGES


def pages_dtype(name: str | None, default) -> jnp.dtype:
    """The dtype of keys and values that `cache_dtype` asks for; `default` is the params' own. Raises ValueError where it is none."""
    if name is None:
        return jnp.dtype(default)
    if not isinstance(name, str) or name != fp8_pages.DTYPE:
        raise ValueError(f"cache_dtype must be None, for the params' own, or '{fp8_pages.DTYPE}'; got {quoted(name)}.")
    return jnp.dtype(fp8_pages.DTYPE)


def own_pages(partition: Partition | None, table: jax.Array, pages: int) -> jax.Array:
    """Within `sharding.local`: a table of rows of this device, whose pages count from the device's first one.

    Args:
      partition: how the cache lies.
      table: [B, R] of pages counted over all devices.
      pages: how many a device has.
    """
    return table if partition is None else table - partition.index("pages") * pages


def places(table: jax.Array, positions: jax.Array, valid: jax.Array, size: int, pages: int) -> tuple[jax.Array, jax.Array]:
    """Where new keys and values go: page and offset within it, each [B, T] int32; a page that does not exist where not `valid`.

    Args:
      table: [B, R].
      positions: [B, T] int32.
      valid: [B, T] bool; what is not valid is not written.
      size: positions a page.
      pages: how many there are.
    """
    page = jnp.take_along_axis(table, (positions // size) % table.shape[1], 1)
    return jnp.where(valid, page, pages), positions % size


def write(pages: jax.Array | Fp8Pages, page: jax.Array, offset: jax.Array, new: jax.Array) -> jax.Array | Fp8Pages:
    """Pages with `new` in the given places.

    Args:
      pages: [P, K, page, H].
      page, offset: [B, T] int32, of `places`; pages from P on are dropped. For `Fp8Pages` as `fp8_pages.write` wants them.
      new: [B, T, K, H] keys or values; cast to the pages' dtype.
    """
    if isinstance(pages, Fp8Pages):
        return fp8_pages.write(pages, page, offset, new)
    return pages.at[page, :, offset].set(new.astype(pages.dtype), mode="drop")
