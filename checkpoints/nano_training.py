"""The training of nano, step by step: geometry, initial weights, loss, optimizer, saved states.

Muon trains the matrices, Adam the rest. Late in a run the experts are rounded to MXFP4 in every forward pass (gradients pass
straight through), so that packing them at the end costs nothing. `train_nano` is the loop around it.
"""

from collections.abc import Callable
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from checkpoints import nano_data, nano_tokenizer
from gptoss_jax.config import Config
from gptoss_jax.model.params import Params, abstract_params, is_spec
from gptoss_jax.model.transformer import forward
from pallas_kernels.mxfp4 import quantize, unpack

VOCABULARY, BALANCE = 640, 0.01
MATRICES = {  # leaf name -> how Muon sees it as (a batch of) output x input matrices
    "qkv": optax.contrib.MuonDimensionNumbers(reduction_axis=3, output_axis=(0, 1, 2)),
    "out": optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0),
    "gate_up": optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1),
    "down": optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1),
}


def geometry(vocab_size: int, eos: int) -> Config:
    """nano's Config. Head width 64 and multiples of 64 keep the GPU kernels applicable."""
    return Config(
        vocab_size=vocab_size, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        intermediate_size=128, num_local_experts=4, num_experts_per_tok=2, sliding_window=32,
        layer_types=("sliding_attention", "full_attention") * 2, max_position_embeddings=131072, rope_original_context=4096,
        eos_token_ids=(eos,),
    )  # fmt: skip


def initial(key: jax.Array, config: Config) -> Params:
    """Float32 parameters to train from: matrices of unit gain, smaller where they add to the residual stream."""
    depth = (2 * config.num_hidden_layers) ** -0.5

    def leaf(path, spec, key):
        name = path[-1].name
        if name == "norm":
            return jnp.ones(spec.shape)
        if name == "sinks" or "bias" in name:
            return jnp.zeros(spec.shape)
        scale = 1.0 if name == "embedding" else spec.shape[-1] ** -0.5 * (depth if name in ("out", "down") else 1.0)
        return scale * jax.random.normal(key, spec.shape)

    table = abstract_params(config, "float32", "stacked")
    leaves, tree = jax.tree.flatten(table, is_leaf=is_spec)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
    return jax.tree_util.tree_map_with_path(leaf, table, keys, is_leaf=is_spec)


def rounded(params: Params, quantised: bool) -> Params:
    """What the product computes with: matrices in bfloat16, experts also on the MXFP4 grid; gradients pass straight through."""

    def leaf(path, w):
        name = path[-1].name
        if quantised and name in ("gate_up", "down"):
            w = w + jax.lax.stop_gradient(unpack(quantize(w), jnp.float32) - w)
        return w.astype(jnp.bfloat16) if name in ("embedding", "unembedding", *MATRICES) else w

    return jax.tree_util.tree_map_with_path(leaf, params)


def loss(params: Params, batch: nano_data.Batch, config: Config, quantised: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean negative log-likelihood of the assistant's tokens, plus a little for unevenly loaded experts."""
    routed: list[jax.Array] = []

    def hook(name: str, value: jax.Array) -> jax.Array:
        if name.endswith("router_logits"):
            routed.append(value)
        return value

    logits = forward(rounded(params, quantised), config, batch.tokens, segment_ids=batch.segments, hook=hook)
    target = jnp.roll(batch.tokens, -1, 1)
    likelihood = jnp.take_along_axis(logits, target[:, :, None], -1)[:, :, 0] - jax.nn.logsumexp(logits, -1)
    total = jnp.sum(batch.weights)
    nll = -jnp.sum(likelihood * batch.weights) / total
    right = jnp.sum(jnp.where(jnp.argmax(logits, -1) == target, batch.weights, 0)) / total
    real = (batch.segments > 0).astype(jnp.float32)
    balance = sum(_imbalance(logits, real, config.num_experts_per_tok) for logits in routed) / len(routed)
    return nll + BALANCE * balance, {"loss": nll, "right": right, "balance": balance}


def _imbalance(logits: jax.Array, real: jax.Array, active: int) -> jax.Array:
    """1 when experts are chosen evenly, up to E / A when always the same ones are; differentiable in the probabilities."""
    E = logits.shape[-1]
    least = jax.lax.stop_gradient(jax.lax.top_k(logits, active)[0][:, :, -1:])
    chosen, real = (logits >= least).astype(jnp.float32), real[:, :, None] / jnp.sum(real)
    share = jnp.sum(chosen * real, (0, 1)) / active
    return E * jnp.sum(jax.lax.stop_gradient(share) * jnp.sum(jax.nn.softmax(logits, -1) * real, (0, 1)))


def optimizer(steps: int) -> optax.GradientTransformation:
    """Muon for the matrices, Adam for the rest: a short warm-up, constant for a fifth of the run, then down to zero."""

    def schedule(peak: float) -> Callable[[jax.Array], jax.Array]:
        def at(step):
            done = step / steps
            return peak * jnp.minimum(1.0, step / 200) * jnp.clip((1 - done) / 0.8, 0.0, 1.0)

        return at

    def matrices(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: MATRICES.get(path[-1].name), params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(0.02), weight_decay=0.1, adam_b2=0.98, adam_learning_rate=schedule(3e-3), muon_weight_dimension_numbers=matrices
        ),
    )


@functools.partial(jax.jit, static_argnames=("config", "steps", "quantised"), donate_argnums=(0, 1))
def train_step(params: Params, state: Any, batch: nano_data.Batch, *, config: Config, steps: int, quantised: bool):
    """One step: parameters, optimizer state and measures."""
    grads, measures = jax.grad(loss, has_aux=True)(params, batch, config, quantised)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax relies on both
        updates, state = optimizer(steps).update(grads, state, params)
    return optax.apply_updates(params, updates), state, measures


def save(path: str, tree: Any, step: int) -> None:
    """Writes a tree of arrays and the step whole, or not at all."""
    with open(path + ".new", "wb") as file:
        np.savez(file, step=step, **{str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))})
    os.replace(path + ".new", path)


def restore(path: str, like: Any) -> tuple[Any, int]:
    """The tree and the step that `save` wrote."""
    with np.load(path) as file:
        leaves = [jnp.asarray(file[str(i)], leaf.dtype) for i, leaf in enumerate(jax.tree.leaves(like))]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), int(file["step"])


def vocabulary(folder: str) -> str:
    """The path of the run's SentencePiece model, built once."""
    path = os.path.join(folder, "tokenizer.model")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        with open(path, "wb") as file:
            file.write(nano_tokenizer.build(VOCABULARY))
    return path
