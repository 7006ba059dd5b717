"""The model on a mesh of eight devices: the numbers and the tokens of one device, each device with its part, few collectives."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from on_meshes import alone, answers, model
import oracle
import pytest

import gptoss_jax as gj
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.device.state import init_state, plain_orders
from gptoss_jax.model import fused, transformer
from gptoss_jax.model.cache import cache_axes, init_cache
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.options import MAX_GIVEN

EXACT = 1e-5  # as in test_goldens
GOLDEN_BF16 = 0.0336  # as in test_fused: what bfloat16 itself does


def shallow(model):
    """Parameters and geometry of the first two layers, a sliding and a full one."""
    config = dataclasses.replace(model.config, num_hidden_layers=2, layer_types=model.config.layer_types[:2])
    return model.params.replace(layers=model.params.layers[:2]), config


def lies_as(partition, arrays, axes):
    """Whether arrays lie on the mesh as their logical axes say."""
    right = lambda x, axes: x.sharding.is_equivalent_to(partition.sharding(axes), x.ndim)
    return all(jax.tree.leaves(jax.tree.map(right, arrays, axes)))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "shape", [(1, 8), (2, 4), pytest.param((4, 2), marks=pytest.mark.slow), pytest.param((8, 1), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name, dtype", [("tiny", "float32"), pytest.param("nano", "bfloat16", marks=pytest.mark.slow)])
def test_tokens_are_those_of_one_device(name, dtype, shape):
    """Greedy and seeded, with every filter and penalty."""
    wanted, got = alone(name, dtype), answers(model(name, dtype, shape=shape))
    for (tokens, logprobs, top, beside), (same, near, ranked, others) in zip(wanted, got, strict=True):
        assert same == tokens and len(others) == len(beside)
        for ours, theirs in ((near, logprobs), (others, beside)):
            assert not theirs or oracle.error(ours, theirs) < (EXACT if dtype == "float32" else GOLDEN_BF16)
        assert dtype == "bfloat16" or ranked == top


@pytest.mark.thorough
@pytest.mark.parametrize(
    "experts, shape",
    [
        ("tiled", (1, 8)),
        ("tiled", (2, 4)),
        pytest.param("tiled", (4, 2), marks=pytest.mark.slow),
        pytest.param("tiled", (8, 1), marks=pytest.mark.slow),
        ("packed", (2, 4)),
        pytest.param("stacked", (1, 8), marks=pytest.mark.slow),
        pytest.param("split", (2, 4), marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_one_device(experts, shape):
    """Without a cache, and with one; tiles take the fused step."""
    one, (params, config) = shallow(model("nano", experts=experts)), shallow(model("nano", experts=experts, shape=shape))
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (8, 40), np.int32)
    run = jax.jit(gj.forward, static_argnums=1)
    wanted, got = run(*one, tokens), run(params, config, tokens)
    assert oracle.error(got, wanted) < EXACT
    assert got.sharding.is_equivalent_to(params.partition.sharding(("batch", None, "vocab")), 3)
    cache = init_cache(config, 8, 64, chunk=39, dtype="float32", partition=params.partition)
    prefill, step = (jax.jit(f, static_argnums=1) for f in (transformer.prefill, transformer.decode_step))
    first, cache = prefill(params, config, cache, tokens[:, :39], np.full(8, 39, np.int32))
    assert oracle.error(first, wanted[:, 38]) < EXACT
    assert fused.covers(params, 8) == (experts == "tiled")
    last, cache = step(params, config, cache, tokens[:, 39], active=np.ones(8, bool))
    assert oracle.error(last, wanted[:, 39]) < EXACT
    assert lies_as(params.partition, cache, cache_axes(cache))


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(2, 4)])
def test_derivatives_are_those_of_one_device(shape):
    one, many = shallow(model("tiny", experts="stacked")), shallow(model("tiny", experts="stacked", shape=shape))
    tokens = np.random.default_rng(2).integers(0, one[1].vocab_size, (4, 12), np.int32)

    def loss(params, config):
        logprobs = jax.nn.log_softmax(gj.forward(params, config, tokens[:, :-1]))
        return -jnp.mean(jnp.take_along_axis(logprobs, tokens[:, 1:, None], 2))

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    wanted, got = grad(*one), grad(*many)

    def check(path, ours, theirs):
        ours = np.asarray(ours)[tuple(slice(n) for n in theirs.shape)]  # experts may be wider on a mesh
        assert oracle.error(ours, theirs) < EXACT, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(check, got.replace(partition=None), wanted)


@pytest.mark.thorough
def test_a_hook_sees_whole_arrays():
    one, many = shallow(model("tiny")), shallow(model("tiny", shape=(2, 4)))
    tokens = np.random.default_rng(3).integers(0, one[1].vocab_size, (2, 9), np.int32)

    @functools.partial(jax.jit, static_argnums=1)
    def values(params, config):
        seen = {}
        gj.forward(params, config, tokens, hook=lambda name, value: seen.setdefault(name, value))
        return seen

    wanted, got = values(*one), values(*many)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert oracle.error(got[name], value) < EXACT, name


def collectives(text):
    """(kind, shapes of its results, whether it is of the draw) of every collective of a compiled program."""
    found = re.findall(r"= (.+?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\((.*)", text)
    dimensions = lambda shapes: [tuple(map(int, filter(None, dims.split(",")))) for dims in re.findall(r"\[([\d,]*)\]", shapes)]
    return [(kind, dimensions(shapes), "/sample/" in rest) for shapes, kind, rest in found]


@pytest.mark.thorough
@pytest.mark.parametrize("experts", ["packed", "tiled"])
def test_a_step_has_two_sums_a_layer_and_never_gathers_logits(experts):
    params, config = shallow(model("nano", experts=experts, shape=(2, 4)))
    partition = params.partition
    asked = gj.Sampling(temperature=1, top_p=0.9, top_k=9, seed=1, logprobs=5, processed_logprobs=5, logprob_token_ids=[3])
    settings = sampling_state.stack([asked] * 4, vocab_size=config.vocab_size, partition=partition)
    cache = init_cache(config, 4, 64, chunk=16, dtype="float32", partition=partition)
    state = init_state(cache, settings, partition=partition)
    orders = plain_orders(4, 8, steps=8, vocab_size=config.vocab_size, partition=partition)
    step = decode.decode_chunk.lower(params, config, state, orders, steps=8, top_logprobs=5).compile().as_text()
    given = (4, 8, MAX_GIVEN)  # numbers of the steps, which every device has when they are over
    found = [(kind, [shape for shape in shapes if shape != given], draws) for kind, shapes, draws in collectives(step)]
    rows = [kind for kind, shapes, draws in found for shape in shapes if shape[-1:] == (config.hidden_size,) and not draws]
    assert rows == ["all-reduce"] * (2 * config.num_hidden_layers + 1), "after attention, after the experts, and the embedding"
    most = max(4 // 2 * config.hidden_size, 4 * 20, 4 // 2 * MAX_GIVEN)
    assert max(math.prod(shape) for _, shapes, _ in found for shape in shapes) <= most < 4 // 2 * config.vocab_size, found


def test_rows_that_replicas_cannot_share_are_refused():
    many = model("nano", shape=(4, 2))
    with pytest.raises(ValueError, match=r"slots must be a multiple of the mesh's data axis \(4\); got 6; pass slots=8\."):
        gj.LLM(many, slots=6)
    with pytest.raises(
        ValueError, match=r"rows of a batch must be a multiple of the mesh's data axis \(4\); got 2; pad the batch, or use data=1\."
    ):
        gj.forward(many.params, many.config, np.zeros((2, 4), np.int32))
    with pytest.raises(ValueError, match="rows of a batch"):
        init_cache(many.config, 2, 64, chunk=16, partition=many.params.partition)
