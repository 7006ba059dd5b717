"""Params, configurations, captures and adapters as Treescope shows them in a notebook: a tree of shapes, dtypes and bytes.

    display.treescope()     # once: afterwards a cell that ends with `params` shows it so

Treescope by itself computes a mean, a spread and extremes of every array, which reads all weights; here of an array in one of this
package's trees only what is known without its numbers is said, and its numbers are shown where it alone is asked for
(`params.embedding`). Nothing is computed or fetched from a device. Treescope is imported when it is asked for (extra `notebooks`).
"""

import dataclasses
import math
from typing import Any
import warnings

import jax

from gptoss_jax.config import Config
from gptoss_jax.parallel.sharding import Partition

_OURS = ("gptoss_jax.", "pallas_kernels.")
_FEW = 8
_AS_ARRAYS = ("Mxfp4", "Tiles", "LowRank")  # trees that stand for one array


def treescope(*, interactive: bool = True) -> None:
    """Has Treescope show this package's trees, for the rest of the process. May be called again.

    Args:
      interactive: also make Treescope what a notebook shows values with (`treescope.basic_interactive_setup`, without pictures of arrays).

    Raises:
      ImportError: Treescope is not installed.
    """
    shown = _treescope()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it looks at every name that NumPy has
        shown.type_registries.update_registries_for_imports()
    renderer = shown.active_renderer.get()
    if not any(handler is _shown for handler in renderer.handlers):
        shown.active_renderer.set_globally(renderer.extended_with(handlers=[_shown]))
    if interactive:
        shown.basic_interactive_setup(autovisualize_arrays=False)


def _treescope():
    try:
        import treescope
    except ImportError as error:
        raise ImportError("this display needs Treescope, which is not installed; pip install 'gptoss-jax[notebooks]'") from error
    return treescope


def _shown(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler: one of our dataclasses as a tree, NotImplemented for anything else."""
    if not _is_ours(node) or isinstance(node, Config):
        return NotImplemented
    if isinstance(node, Partition):
        return _line(_on_mesh(node), path)
    parts = _treescope().rendering_parts
    children = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if value is None or (isinstance(value, tuple) and not value):
            continue
        own = None if path is None else f"{path}.{field.name}"
        child = _line_for(value, own) or _several(value, own, subtree_renderer) or subtree_renderer(value, path=own)
        children.append(parts.siblings_with_annotations(f"{field.name}=", child))
    return parts.build_foldable_tree_node_from_children(
        prefix=parts.siblings(parts.maybe_qualified_type_name(type(node)), _marked(_summary(node)), "("),
        children=children,
        suffix=")",
        comma_separated=True,
        path=path,
    )


def _line_for(value: Any, path: str | None) -> Any:
    """A line for an array, or for several that are alike; None where a value is neither."""
    if _is_array(value):
        return _line(_described(value), path)
    if isinstance(value, tuple) and value and all(map(_is_array, value)) and len({_described(one) for one in value}) == 1:
        return _line(f"{len(value)} × {_described(value[0])}", path)
    return None


def _several(value: Any, path: str | None, subtree_renderer: Any) -> Any:
    """Trees in a row, folded where they are more than a few, such as layers; None where a value is no such row."""
    if not isinstance(value, tuple) or not value or not all(map(_is_ours, value)):
        return None
    parts = _treescope().rendering_parts
    return parts.build_foldable_tree_node_from_children(
        prefix=parts.siblings(_marked(f"{len(value)} × {type(value[0]).__name__} {_summary(value)}"), "("),
        children=[subtree_renderer(one, path=None if path is None else f"{path}[{i}]") for i, one in enumerate(value)],
        suffix=")",
        comma_separated=True,
        path=path,
        expand_state=parts.ExpandState.COLLAPSED if len(value) > _FEW else parts.ExpandState.WEAKLY_COLLAPSED,
    )


def _line(text: str, path: str | None) -> Any:
    return _treescope().rendering_parts.build_one_line_tree_node(_marked(text), path)


def _marked(text: str) -> Any:
    parts = _treescope().rendering_parts
    return parts.abbreviation_color(parts.text(f"<{text}>" if text else ""))


def _is_ours(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith(_OURS)


def _is_array(value: Any) -> bool:
    """Also one that has no numbers: an entry of a table, a shape and a dtype."""
    return isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype") and type(value).__name__ not in _AS_ARRAYS


def _described(array: Any) -> str:
    text = f"{array.dtype}{list(array.shape)} {_bytes(_size(array))}"
    sharding = getattr(array, "sharding", None)
    if sharding is None or len(sharding.device_set) == 1:
        return text
    return f"{text}, {list(sharding.shard_shape(array.shape))} on each of {len(sharding.device_set)} devices"


def _size(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def _summary(node: Any) -> str:
    """What all of a tree's arrays have together; of one that stands for an array also its shape."""
    leaves = [leaf for leaf in jax.tree.leaves(node, is_leaf=_is_array) if _is_array(leaf)]
    if not leaves or leaves[0] is node:
        return ""
    shape = f"{list(node.shape)} " if type(node).__name__ in _AS_ARRAYS else ""
    return shape + _bytes(sum(map(_size, leaves)))


def _on_mesh(partition: Partition) -> str:
    shape = partition.mesh.shape
    return f"Partition {', '.join(f'{axis}={count}' for axis, count in shape.items())} of {partition.mesh.size} devices"


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
