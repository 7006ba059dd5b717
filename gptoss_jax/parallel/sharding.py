"""Where arrays lie on a mesh of devices: the only room that names mesh axes.

Tables name the axes of weights and caches logically ("kv_heads", "vocab"); `RULES` maps the names to the mesh. A mesh is (data, model):
rows of a batch over `data`, weights over `model`. Where there are more `model` devices than kv heads, each head lies on several of them,
which do the same work; so inside, `model` is two axes, (heads, repeat), and every logical axis takes one, both or none.

    mesh (data=2, model=4), 2 kv heads:   data = 2, heads = 2, repeat = 2

Model code computes on global arrays. `local` runs a part of it on each device's own piece, where a kernel is called or a
product must stay where its weights are, and `total` adds such pieces' results: once after attention, once after the experts.

A model without a mesh lies on one device, whichever: `home` says where a model lies, and there goes what the host makes for it (`put`).
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.quoting import quoted

AXES = ("data", "model")
_INSIDE = ("data", "heads", "repeat")
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data",),
    "pages": ("data",),  # of a cache: a row's pages lie where the row does
    "kv_heads": ("heads",),
    "heads": ("heads",),
    "experts": (),  # whole everywhere: every device has a part of each expert, so that none waits for another's experts
    "expert_hidden": ("heads", "repeat"),
    "vocab": ("heads", "repeat"),
    "embed": (),
}

Axes = tuple[str | None, ...]
"""The logical name of each dimension of an array; None and names with no rule are whole on every device."""


@dataclasses.dataclass(frozen=True)
class Partition:
    """A model's way to lie on a mesh. Hashable: `Params` and `Cache` carry it as static data.

    Attributes:
        mesh: of the axes (data, heads, repeat).
    """

    mesh: Mesh

    def spec(self, axes: Axes) -> PartitionSpec:
        """Mesh axes of an array with these logical axes, written as XLA writes those of its results: no axis of one, nothing at the end."""
        of = lambda name: tuple(axis for axis in RULES[name] if self.mesh.shape[axis] > 1) if name else ()
        entries = [axes[0] if len(axes) == 1 else axes or None for axes in map(of, axes)]
        while entries and entries[-1] is None:
            entries.pop()
        return PartitionSpec(*entries)

    def sharding(self, axes: Axes = ()) -> NamedSharding:
        """Where an array with these logical axes lies; whole on every device if there are none."""
        return NamedSharding(self.mesh, self.spec(axes))

    def parts(self, name: str) -> int:
        """How many pieces a logical axis is cut into."""
        return math.prod(self.mesh.shape[axis] for axis in RULES[name])

    @property
    def processes(self) -> int:
        """How many processes have devices of the mesh."""
        return len({device.process_index for device in self.mesh.devices.flat})

    def index(self, name: str) -> jax.Array:  # [] int32
        """Within `local`: which piece of a logical axis this device has."""
        return jax.lax.axis_index(RULES[name])


Place = Partition | jax.Device | None
"""Where arrays lie: as a model on its mesh, on one device, or, for None, on JAX's default device."""


def default_device() -> jax.Device:
    """Where JAX puts what it is not told where to put: the first device, or that of `jax.default_device`."""
    return jax.extend.backend.get_default_device()


def home(partition: Partition | None, arrays: Any) -> Place:
    """Where a model lies, by a tree of its arrays; None where that is open: of abstract arrays, and of those that are being traced.

    Args:
        partition: how it says that it lies on a mesh.
        arrays: all of them, or some.

    Raises:
        ValueError: they lie elsewhere, on several devices without a mesh, or on none.
    """
    wanted = None if partition is None else set(partition.mesh.devices.flat)
    for path, array in jax.tree.leaves_with_path(arrays):
        if isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "one"
        if not isinstance(array, jax.Array):
            raise ValueError(f"parameters must be JAX's arrays; {name} is {_article(array)}; put them on a device with jax.device_put.")
        if array.is_deleted():
            raise ValueError(f"parameters must be there; {name} is deleted, or was given to a program to write over; load the model again.")
        found = array.sharding.device_set
        if partition is None and len(found) > 1:
            raise ValueError(
                f"parameters without a mesh must lie on one device; {name} lies on {len(found)}, {_devices(found)}; load the model with "
                "mesh=gptoss_jax.mesh(), or move it with jax.device_put."
            )
        if found != (wanted := wanted or found):
            lie = "one device" if partition is None else f"the {len(wanted)} devices of their mesh"
            raise ValueError(
                f"parameters must all lie on {lie}, {_devices(wanted)}; {name} lies on {_devices(found)}; move all of them with "
                "jax.device_put, or load the model there."
            )
    return partition or (wanted and next(iter(wanted)))


def device_of(place: Place) -> jax.Device:
    """The device of a place, of a mesh this process' first."""
    return place.mesh.local_devices[0] if isinstance(place, Partition) else place or default_device()


@contextlib.contextmanager
def at(place: Place) -> Iterator[None]:
    """Within this a place's device is JAX's default: what is traced is for it, whoever has it traced."""
    if place is None:
        yield
        return
    with jax.default_device(device_of(place)):
        yield


def local(partition: Partition | None, fn: Callable, ins: Sequence[Any], outs: Any) -> Callable:
    """`fn` on each device's own pieces of global arrays; `fn` itself where there is no mesh.

    Args:
        partition: how arrays lie.
        fn: of arrays' pieces; on a mesh it calls `total` where its results are parts of a sum.
        ins: of each argument the logical axes, or a tree of them like the argument.
        outs: of the result, likewise.
    """
    if partition is None:
        return fn
    of = lambda tree: jax.tree.map(partition.spec, tree, is_leaf=_is_axes)
    # Whether results are the same on all devices is not checked: a Pallas kernel does not say so.
    return jax.shard_map(fn, mesh=partition.mesh, in_specs=tuple(map(of, ins)), out_specs=of(outs), check_vma=False)


def total(partition: Partition | None, x: jax.Array, name: str) -> jax.Array:
    """Within `local`: the sum over the pieces of a logical axis, the same on every device."""
    return x if partition is None else jax.lax.psum(x, RULES[name])


def once(partition: Partition | None, x: jax.Array, name: str) -> jax.Array:
    """Within `local`: what makes `total` add x once: x where the first piece of a logical axis lies, zeros elsewhere."""
    return x if partition is None else jnp.where(partition.index(name) == 0, x, jnp.zeros_like(x))


def gathered(partition: Partition, x: jax.Array, name: str) -> jax.Array:
    """Within `local`: the pieces of x [rows, ...] side by side, along its last axis, on every device."""
    return jax.lax.all_gather(x, RULES[name], axis=x.ndim - 1, tiled=True)


def constrain(partition: Partition | None, x: jax.Array, axes: Axes = ()) -> jax.Array:
    """`x`, which XLA shall lay out so."""
    return x if partition is None else jax.lax.with_sharding_constraint(x, partition.sharding(axes))


def mesh(data: int = 1, model: int | None = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh for `load`: rows of a batch over `data` replicas of the weights, each spread over `model` devices.

    Neighbours along `model` talk after every layer: they are neighbours in `devices`, so on one host as far as possible.

    Args:
        data: replicas.
        model: devices that share one; None for all that there are, divided by `data`.
        devices: which ones, of all processes; `jax.devices()` if None. They may be more than are needed if there is one process.

    Raises:
        ValueError: there are fewer devices than asked for, or a process would have none in the mesh.
    """
    devices = jax.devices() if devices is None else devices
    if not isinstance(devices, Sequence | np.ndarray) or not len(devices) or not all(hasattr(each, "process_index") for each in devices):
        raise ValueError(f"devices must be some of jax.devices(), at least one; got {quoted(devices)}.")
    devices = list(devices)
    for name, value in (("data", data), ("model", 1 if model is None else model)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {quoted(value)}.")
    model = max(1, len(devices) // data) if model is None else model
    count = data * model
    if count > len(devices):
        raise ValueError(
            f"a mesh of data={data} and model={model} needs {count} devices; there are {len(devices)} ({devices[0].device_kind}); "
            "ask for fewer, or start with more (on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8 gives eight)."
        )
    idle = {device.process_index for device in devices} - {device.process_index for device in devices[:count]}
    if idle:
        raise ValueError(
            f"a mesh of {count} of {len(devices)} devices leaves none to process {min(idle)}; use all devices, or start fewer processes."
        )
    return Mesh(np.array(devices[:count]).reshape(data, model), AXES)


def check_mesh(mesh: Mesh | None) -> None:
    """Raises ValueError where it is something else."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh; got {type(mesh).__name__}; make it with gptoss_jax.mesh().")


def partition(mesh: Mesh | None, config: Config) -> Partition | None:
    """How a model lies on a mesh; None on None, which is one device.

    Raises:
        ValueError: the mesh has other axes, or its model axis cannot divide the model.
    """
    check_mesh(mesh)
    if mesh is None:
        return None
    if set(mesh.axis_names) - set(AXES) or not mesh.axis_names:
        raise ValueError(f"a mesh must have the axes {AXES}, or one of them; got {mesh.axis_names}; make it with gptoss_jax.mesh().")
    data, model = (mesh.shape.get(axis, 1) for axis in AXES)
    if config.vocab_size % model:
        fitting = [n for n in range(1, 17) if config.vocab_size % n == 0]
        raise ValueError(
            f"the mesh's model axis must divide vocab_size ({config.vocab_size:,}); got {model}; use {', '.join(map(str, fitting))}."
        )
    heads = math.gcd(model, config.num_key_value_heads)
    devices = mesh.devices if mesh.axis_names != AXES[::-1] else mesh.devices.T
    return Partition(Mesh(devices.reshape(data, heads, model // heads), _INSIDE))


def check_rows(partition: Place, rows: int) -> None:
    """Raises ValueError where a batch of so many rows cannot be divided among a mesh's replicas."""
    if isinstance(partition, Partition) and rows % partition.parts("batch"):
        data = partition.parts("batch")
        raise ValueError(f"rows of a batch must be a multiple of the mesh's data axis ({data}); got {rows}; pad the batch, or use data=1.")


def of(place: Place, axes: Axes = ()) -> Sharding | None:
    """The sharding of an array with these logical axes; None for JAX's default device."""
    return place.sharding(axes) if isinstance(place, Partition) else place and SingleDeviceSharding(place)


def put(value: Any, place: Place, axes: Axes = ()) -> jax.Array:
    """A host's array where it is to lie; on a mesh every process has all of it and keeps what its devices need.

    Args:
        value: NumPy array or scalar, the same in every process.
        place: a model's `home`.
        axes: logical.
    """
    value = np.asarray(value)
    if not isinstance(place, Partition):
        return jax.device_put(value.copy(), place)  # the host's array may change later; unlike jnp.asarray this compiles nothing
    return jax.make_array_from_callback(value.shape, place.sharding(axes), lambda index: value[index])


def moved(array: jax.Array, place: Place) -> jax.Array:
    """An array whole on every device of a place, itself if it lies there; of one that is being traced JAX sees to that."""
    if place is None or isinstance(array, jax.core.Tracer):
        return array
    lies = of(place)
    if isinstance(array, jax.Array) and array.committed and array.sharding.device_set == lies.device_set:
        return array
    return put(array, place) if isinstance(place, Partition) else jax.device_put(array, place)


def _devices(devices: set[jax.Device]) -> str:
    names = sorted(map(str, devices))
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _article(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__name__}"


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)
