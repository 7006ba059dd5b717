"""Where arrays lie on a mesh: the rules, what a device computes of its own, and what is refused."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import numpy as np
import pytest

from gptoss_jax.config import TINY
from gptoss_jax.parallel import sharding

MESHES = [(1, 8), (2, 4), (4, 2), (8, 1), (1, 1)]


def partition(data=2, model=4, config=TINY):
    return sharding.partition(sharding.mesh(data, model), config)


@pytest.mark.parametrize(
    ("data", "model", "kv_heads", "inside"),
    [
        (2, 4, 2, (2, 2, 2)),
        (1, 8, 2, (1, 2, 4)),
        (1, 8, 8, (1, 8, 1)),
        (1, 2, 8, (1, 2, 1)),
        (1, 4, 6, (1, 2, 2)),
        (1, 5, 2, (1, 1, 5)),
        (8, 1, 2, (8, 1, 1)),
    ],
)
def test_model_devices_are_heads_times_repeats(data, model, kv_heads, inside):
    config = dataclasses.replace(TINY, num_key_value_heads=kv_heads, num_attention_heads=kv_heads)
    part = partition(data, model, config)
    assert part.mesh.devices.shape == inside
    assert (part.parts("batch"), part.parts("kv_heads"), part.parts("heads")) == (data, inside[1], inside[1])
    assert (part.parts("vocab"), part.parts("expert_hidden"), part.parts("embed"), part.parts("experts")) == (model, model, 1, 1)
    assert list(part.mesh.devices.flat) == jax.devices()[: data * model]  # neighbours stay neighbours


def test_specs_are_written_as_xla_writes_those_of_results():
    part = partition(2, 4)
    assert part.spec(("vocab", "embed")) == PartitionSpec(("heads", "repeat"))
    assert part.spec(("embed", "heads")) == PartitionSpec(None, "heads")
    assert part.spec(("batch", None, "kv_heads", None)) == PartitionSpec("data", None, "heads")
    assert part.spec(("experts", "embed")) == part.spec(()) == PartitionSpec()
    assert partition(4, 2).spec(("vocab", "heads")) == PartitionSpec("heads", "heads")  # no repeats: an axis of one is left out
    assert partition(8, 1).spec(("vocab",)) == PartitionSpec()
    x = sharding.put(np.ones((320, 96), np.float32), part, ("vocab", "embed"))
    assert jax.jit(lambda x: x + 1)(x).sharding == x.sharding == part.sharding(("vocab", "embed")) == sharding.of(part, ("vocab", "embed"))


def test_partitions_are_equal_where_they_say_the_same():
    assert partition() == partition() and hash(partition()) == hash(partition()) and partition(2, 4) != partition(4, 2)


@pytest.mark.parametrize(("data", "model"), MESHES)
def test_each_device_has_its_piece(data, model):
    part = partition(data, model)
    whole = np.arange(8 * 320, dtype=np.int32).reshape(8, 320)
    x = sharding.put(whole, part, ("batch", "vocab"))
    np.testing.assert_array_equal(x, whole)
    assert all(shard.data.shape == (8 // data, 320 // model) for shard in x.addressable_shards)
    number = sharding.local(part, lambda x: jnp.full_like(x, part.index("vocab")), ins=[("batch", "vocab")], outs=("batch", "vocab"))(x)
    np.testing.assert_array_equal(number[0], np.arange(320) // (320 // model))


@pytest.mark.parametrize(("data", "model"), [*MESHES, (None, None)])
def test_a_product_cut_along_its_sum_is_the_product_and_so_is_its_gradient(data, model):
    part = None if data is None else partition(data, model)
    rng = np.random.default_rng(0)
    x, w, bias = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((8, 64), (64, 3), (3,)))  # sums are exact

    def own(x, w, bias):
        return sharding.total(part, x @ w + sharding.once(part, bias, "expert_hidden")[None], "expert_hidden")

    ins, outs = [("batch", "expert_hidden"), ("expert_hidden", None), (None,)], ("batch", None)
    product = sharding.local(part, own, ins=ins, outs=outs)
    placed = [sharding.put(value, part, axes) for value, axes in zip((x, w, bias), ins, strict=True)]
    np.testing.assert_array_equal(jax.jit(product)(*placed), x @ w + bias)
    got = jax.jit(jax.grad(lambda *args: jnp.sum(product(*args) ** 2), argnums=(0, 1, 2)))(*placed)
    d = 2 * (x @ w + bias)
    for gradient, want in zip(got, (d @ w.T, x.T @ d, d.sum(0)), strict=True):
        np.testing.assert_array_equal(gradient, want)


def test_local_takes_and_gives_trees():
    part = partition()
    axes = {"rows": ("vocab", None), "scale": ()}
    double = sharding.local(part, lambda tree, by: {"rows": tree["rows"] * by, "scale": tree["scale"] + by}, ins=[axes, ()], outs=axes)
    got = double({"rows": jnp.ones((8, 2)), "scale": jnp.float32(1)}, jnp.float32(2))
    np.testing.assert_array_equal(got["rows"], np.full((8, 2), 2))
    assert got["rows"].sharding == part.sharding(axes["rows"]) and got["scale"] == 3


def test_constrain_decides_where_a_result_lies():
    part = partition()
    x = sharding.put(np.ones((8, 320), np.float32), part, ("batch", "vocab"))
    assert jax.jit(lambda x: sharding.constrain(part, x + 1, ("batch", None)))(x).sharding == part.sharding(("batch", None))


def test_without_a_mesh_nothing_happens():
    x = jnp.arange(3.0)
    f = lambda x: x
    assert sharding.partition(None, TINY) is None and sharding.of(None, ("vocab",)) is None
    assert sharding.local(None, f, ins=[("vocab",)], outs=("vocab",)) is f
    assert sharding.total(None, x, "vocab") is x and sharding.once(None, x, "vocab") is x and sharding.constrain(None, x, ("vocab",)) is x
    assert sharding.put(np.ones(3, np.float32), None).devices() == {jax.devices()[0]}
    sharding.check_rows(None, 3)


def test_meshes_are_of_the_first_devices_or_those_that_are_given():
    assert sharding.mesh().shape == {"data": 1, "model": 8}
    assert sharding.mesh(4).shape == {"data": 4, "model": 2}
    assert list(sharding.mesh(1, 2, devices=jax.devices()[5:]).devices.flat) == jax.devices()[5:7]


def test_the_axes_of_a_mesh_may_stand_in_any_order_or_alone():
    devices = np.array(jax.devices())
    turned = sharding.partition(Mesh(devices.reshape(4, 2), ("model", "data")), TINY)
    assert turned.mesh.devices.shape == (2, 2, 2) and list(turned.mesh.devices[0].flat) == list(devices[::2])
    assert sharding.partition(Mesh(devices[:4], ("model",)), TINY).mesh.devices.shape == (1, 2, 2)
    assert sharding.partition(Mesh(devices[:4], ("data",)), TINY).mesh.devices.shape == (4, 1, 1)


def says(sentence):
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def test_bad_meshes_are_refused_in_a_sentence():
    with says(
        "a mesh of data=2 and model=8 needs 16 devices; there are 8 (cpu); ask for fewer, or start with more "
        "(on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8 gives eight)."
    ):
        sharding.mesh(2, 8)
    for value in (0, -1, True, 2.0):
        with says(f"data must be a positive integer; got {value!r}."):
            sharding.mesh(value, 2)
        with says(f"model must be a positive integer; got {value!r}."):
            sharding.mesh(2, value)
    two = [SimpleNamespace(process_index=i // 4, device_kind="cpu") for i in range(8)]
    with says("a mesh of 4 of 8 devices leaves none to process 1; use all devices, or start fewer processes."):
        sharding.mesh(1, 4, devices=two)


def test_meshes_that_do_not_suit_the_model_are_refused_in_a_sentence():
    with says("the mesh's model axis must divide vocab_size (320); got 3; use 1, 2, 4, 5, 8, 10, 16."):
        partition(1, 3)
    with says("a mesh must have the axes ('data', 'model'), or one of them; got ('x', 'model'); make it with gptoss_jax.mesh()."):
        sharding.partition(Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "model")), TINY)
    with says("rows of a batch must be a multiple of the mesh's data axis (2); got 3; pad the batch, or use data=1."):
        sharding.check_rows(partition(), 3)
    sharding.check_rows(partition(), 4)
