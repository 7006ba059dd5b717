"""What an update takes, where its arrays may lie, and what it refuses with a sentence, disturbing nobody."""

import gc

from fake_programs import make_fake, mark, weights_of
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model
from updating import check, compilations, requests, run

from pallas_kernels.low_rank import LowRank


@pytest.fixture
def engine(monkeypatch):
    return make_fake(monkeypatch)


@pytest.mark.parametrize(
    "given, then",
    [
        ([None, None], [1, 2]),
        (["a", None], ["a", 2]),
        ([10, None, None], [10, 11, 12]),
        ([np.int64(3), "x" * 256, None], [3, "x" * 256, 5]),
    ],
    ids=["counted", "named", "numbered", "both"],
)
def test_versions_are_given_or_counted(engine, given, then):
    for version, expected in zip(given, then, strict=True):
        assert engine.changes.update(weights_of(1), version=version) == engine.programs.version == expected
        assert type(engine.programs.version) is type(expected)


SINKS = "layers.0.attention.sinks"


def deleted(params):
    array = jnp.asarray(np.array(params.norm))
    array.delete()
    return {"norm": array}


def attached(params):
    own = params.layers[0].attention
    layer = params.layers[0].replace(attention=own.replace(out=LowRank(own.out, own.norm, own.norm)))
    return params.replace(layers=(layer, *params.layers[1:]))


BAD = {
    "nothing": (lambda p: None, "weights must be Params, or a dict of names and arrays with at least one; got None"),
    "no weight": (lambda p: {}, "got {}; pass model.params of another model"),
    "a model": (lambda p: small_model(), "got Model.* pass model.params"),
    "a path": (lambda p: "nano", "got 'nano'"),
    "a list": (lambda p: [p], "weights must be Params"),
    "a number for a name": (lambda p: {1: p.norm}, "weights must be Params"),
    "another name": (lambda p: {SINKS[:-1]: p.norm}, f"no weight is named '{SINKS[:-1]}'; similar names are {SINKS}"),
    "a pattern": (lambda p: {"layers.*.attention.sinks": p.norm}, "no weight is named"),
    "another shape": (lambda p: {"norm": np.zeros(3, np.float32)}, r"norm must have the shape \(\d+,\); got \(3,\)"),
    "another dtype": (lambda p: {"norm": np.zeros(p.norm.shape)}, "norm must be float32, as the LLM's own; got float64; pass it .astype"),
    "other bytes": (lambda p: {"norm": np.zeros(p.norm.shape, ">f4")}, "norm must be float32"),
    "a list of numbers": (lambda p: {"norm": [0.0]}, "norm is a builtins.list"),
    "a mask": (lambda p: {"norm": np.ma.masked_array(np.ones(p.norm.shape, np.float32), mask=True)}, "MaskedArray; pass numpy.asarray"),
    "a shape only": (lambda p: {"norm": jax.ShapeDtypeStruct(p.norm.shape, p.norm.dtype)}, "weights must be JAX's or NumPy's arrays"),
    "keys": (lambda p: {"norm": jax.random.key(0)}, "norm must have the shape"),
    "deleted": (deleted, "norm is deleted, or was given to a program to write over; pass what that returned"),
    "fewer layers": (lambda p: p.replace(layers=p.layers[:1]), "weights must have 2 layers; got 1"),
    "another form": (lambda p: small_model(experts="packed").params, "'stacked'; got 'packed'; load with experts='stacked'"),
    "an adapter": (attached, "this LLM has none; merge it, or make an LLM"),
    "another geometry": (lambda p: p.replace(embedding=p.embedding[:-1]), "embedding must have the shape"),
    "no layers": (lambda p: p.replace(layers=None), "weights must have 2 layers; got 0"),
    "a layer that is none": (lambda p: p.replace(layers=(p.layers[0], None)), "weights must have 2 layers; got 1"),
    "no experts": (lambda p: p.replace(layers=(p.layers[0].replace(moe=None), p.layers[1])), r"layers\.0\.moe\.\w+ is missing"),
    "nothing in it": (lambda p: jax.tree.map(lambda _: None, p), "weights must have 2 layers; got 0"),
    "an array that is none": (lambda p: p.replace(norm=None), "norm is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_says_so_in_one_sentence_and_disturbs_nothing(engine, case):
    make_it, words = BAD[case]
    before, given = engine.params, make_it(small_model().params)
    with pytest.raises(ValueError, match=words) as refused:
        engine.changes.update(given)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)
    assert engine.params is before and engine.programs.version == 0
    check(asked := requests(2), run(engine, asked))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"version": True}, r"version must be a whole number below 2\*\*63 or a string of 1 to 256 characters; got True"),
        ({"version": -(10**5000)}, "version must be"),
        ({"version": 1.5}, "version must be"),
        ({"version": ""}, "version must be"),
        ({"version": "x" * 257}, "version must be"),
        ({"running": "now"}, 'running must be "finish" or "restart"; got \'now\''),
        ({"running": None}, "running must be"),
        ({"running": []}, "running must be"),
    ],
)
def test_options_are_checked(engine, options, words):
    with pytest.raises(ValueError, match=words):
        engine.changes.update(weights_of(1), **options)
    assert engine.programs.version == 0


def test_weights_that_are_being_traced_are_refused(engine):
    with pytest.raises(ValueError, match="norm is being traced; update outside of jit and grad"):
        jax.jit(lambda x: engine.changes.update({"norm": x}))(small_model().params.norm)


def test_what_fails_in_the_middle_leaves_the_old_weights(engine, monkeypatch):
    def fails(*_):
        raise MemoryError("no more")

    monkeypatch.setattr(engine.programs, "swap", fails)
    asked = requests(8)
    call = lambda: pytest.raises(MemoryError, engine.changes.update, weights_of(1))
    assert {*check(asked, run(engine, asked, at=(1,), calls=(call,)))} == {0}


def test_numpy_s_arrays_may_change_afterwards_and_so_may_what_is_handed_back(engine):
    mine = np.full(engine.params.norm.shape, 5, np.float32)
    engine.changes.update({"norm": mine})
    mine[:] = 7
    assert mark(engine.params) == 5


@pytest.mark.parametrize("kind", ["as they are", "bound", "of weak type", "on another device", "on a mesh"])
def test_weights_that_lie_elsewhere_are_moved_and_nothing_is_compiled(engine, kind):
    own, lies = engine.params.norm, jax.devices()
    array = jnp.full(own.shape, 3.0) if kind == "of weak type" else jnp.asarray(np.full(own.shape, 3, np.float32))
    mesh = jax.sharding.Mesh(np.array(lies[:2]), ("x",))
    where = {"bound": lies[0], "on another device": lies[3], "on a mesh": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))}
    array = jax.device_put(array, where[kind]) if kind in where else array
    with compilations() as compiled:
        engine.changes.update({"norm": array})
    new = engine.params.norm
    assert not compiled and mark(engine.params) == 3
    assert (new.sharding, new.committed, new.weak_type, new.dtype) == (own.sharding, own.committed, False, own.dtype)
    assert kind.startswith("on") or new.unsafe_buffer_pointer() == array.unsafe_buffer_pointer()


def test_a_hundred_swaps_leave_no_array_behind(engine):
    check(asked := requests(2), run(engine, asked))
    full = lambda i: np.full(engine.params.norm.shape, i, np.float32)

    def count():
        assert engine.wait_idle()
        gc.collect()
        return len(jax.live_arrays())

    engine.changes.update({"norm": full(0)})
    before = count()
    for i in range(1, 101):
        engine.changes.update(small_model().params.replace(norm=jnp.asarray(full(i))) if i % 10 == 0 else {"norm": full(i)})
    assert engine.programs.version == 101 and mark(engine.params) == 100
    assert count() <= before
