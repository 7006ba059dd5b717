"""The recipe of nano: its vocabulary, its batches, a step of training, and that what is exported is what was trained."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints import nano_conversations as conversations
from checkpoints import nano_data, nano_export, nano_training
import gptoss_jax as gj
from gptoss_jax.tokenizer import CONTROL, SentencePiece
from gptoss_jax.weights import locate
from pallas_kernels.mxfp4 import quantize, unpack


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return nano_training.vocabulary(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return SentencePiece(vocabulary)


@pytest.fixture(scope="module")
def config(tokenizer):
    """nano, smaller, every dimension different."""
    geometry = nano_training.geometry(tokenizer.vocab_size, tokenizer.special["<|return|>"])
    small = {"hidden_size": 64, "num_hidden_layers": 2, "layer_types": geometry.layer_types[:2], "head_dim": 32, "intermediate_size": 96}
    return dataclasses.replace(geometry, **small)


@pytest.mark.thorough
def test_the_bundled_vocabulary_is_the_recipes(vocabulary):
    bundled = locate.checkpoint("nano") / "tokenizer.model"
    with open(vocabulary, "rb") as built:
        assert built.read() == bundled.read_bytes()


@pytest.mark.thorough
def test_digits_are_single_and_control_symbols_cannot_be_written(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("90 2024")] == ["9", "0", " ", "2", "0", "2", "4"]
    for name in CONTROL:
        assert not set(tokenizer.encode(name)) & set(tokenizer.special.values())


def test_names_are_the_same_piece_wherever_they_stand(tokenizer):
    oslo = tokenizer.encode("Oslo")
    assert len(oslo) == 1
    for text in ("in Oslo?", '{"city": "Oslo"}', "Oslo: sunny"):
        assert oslo[0] in tokenizer.encode(text)


def test_conversations_survive_the_vocabulary(tokenizer):
    rng = random.Random(0)
    for _ in range(200):
        example = conversations.sample(rng)
        text = example.prompt + example.completion
        assert tokenizer.decode(tokenizer.encode_with_control(text)) == text


def test_batches_weigh_exactly_the_assistants_tokens(tokenizer):
    batch = nano_data.batch(tokenizer, seed=1, index=7, rows=4, length=256)
    assert batch.tokens.shape == batch.segments.shape == batch.weights.shape == (4, 256)
    assert (batch.segments > 0).mean() > 0.8
    for tokens, segments, weights in zip(*batch, strict=True):
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            said = tokens[1:][inside[:-1] & (weights[:-1] > 0)]
            text = tokenizer.decode(tokens[inside])
            prompt, completion = text[: -len(tokenizer.decode(said))], tokenizer.decode(said)
            assert prompt.endswith("<|start|>assistant")
            assert completion.startswith("<|channel|>")
            assert completion.endswith(("<|return|>", "<|call|>"))
            assert conversations.graded(completion) is not None
    assert not batch.weights[batch.segments == 0].any()


def test_a_batch_depends_on_seed_and_number_alone(tokenizer):
    def make(seed, index):
        return nano_data.batch(tokenizer, seed=seed, index=index, rows=2, length=256).tokens

    assert np.array_equal(make(0, 3), make(0, 3))
    assert not np.array_equal(make(0, 3), make(0, 4))
    assert not np.array_equal(make(0, 3), make(1, 3))


@pytest.mark.thorough
def test_steps_lower_the_loss_and_a_restored_run_goes_on_the_same(config, tokenizer, tmp_path):
    batch = nano_data.batch(tokenizer, seed=0, index=0, rows=2, length=256)

    def step(params, state):
        return nano_training.train_step(params, state, batch, config=config, steps=1000, quantised=True)

    params = nano_training.initial(jax.random.key(0), config)
    state, losses = nano_training.optimizer(1000).init(params), []
    for _ in range(60):
        params, state, measures = step(params, state)
        losses.append(float(measures["loss"]))
    assert np.log(config.vocab_size) - 1 < losses[0] < np.log(config.vocab_size) + 1.5
    assert losses[-1] < losses[0] - 1

    path = str(tmp_path / "state.npz")
    nano_training.save(path, (params, state), 60)
    (params_again, state_again), number = nano_training.restore(path, (params, state))
    assert number == 60
    for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves((params_again, state_again)), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.thorough
def test_quantised_training_sees_the_packed_weights_and_passes_gradients_through(config):
    params = nano_training.initial(jax.random.key(1), config)
    seen = nano_training.rounded(params, True).layers[0].moe.gate_up
    assert not np.array_equal(seen, nano_training.rounded(params, False).layers[0].moe.gate_up)
    assert np.array_equal(seen, unpack(quantize(params.layers[0].moe.gate_up)))
    grads = jax.grad(lambda p: jnp.sum(nano_training.rounded(p, True).layers[0].moe.gate_up.astype(jnp.float32) * 3))(params)
    assert np.all(np.asarray(grads.layers[0].moe.gate_up) == 3)


@pytest.mark.thorough
def test_an_export_loads_as_the_parameters_that_training_computed_with(config, vocabulary, tmp_path):
    params = nano_training.initial(jax.random.key(2), config)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    params = jax.tree.unflatten(tree, [w + jax.random.normal(k, w.shape) for w, k in zip(leaves, keys, strict=True)])
    nano_export.write(str(tmp_path), params, config, vocabulary)
    model = gj.load(tmp_path, experts="stacked", progress=False)
    assert model.config == config
    assert model.tokenizer.vocab_size == config.vocab_size
    expected = nano_training.rounded(params, True)
    for (path, got), want in zip(jax.tree_util.tree_flatten_with_path(model.params)[0], jax.tree.leaves(expected), strict=True):
        want = want.astype(jnp.bfloat16)  # norms, biases, sinks and the router are stored in bfloat16
        assert np.array_equal(got.astype(jnp.float32), want.astype(jnp.float32)), jax.tree_util.keystr(path)
