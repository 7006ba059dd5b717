"""Random weights of a true shape, and caches that are already full, made on the device: nothing of either passes through the host.

What a step takes depends on lengths, shapes and routing, not on what the weights are; `init_params`' scales spread the routing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.device.state import State, init_state, make_rows
from gptoss_jax.model.cache import Cache, init_cache
from gptoss_jax.model.params import ExpertsForm, Params, abstract_params, is_spec
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.options import Sampling
from pallas_kernels import dispatch
from pallas_kernels.mxfp4.tiles import TILE

CHUNK = 512  # the engine's; rings hold a window and so many tokens


def form_here(config: Config, without: tuple[str, ...] = ()) -> ExpertsForm:
    """How experts are held where programs will run without these kernels: in the kernels' tiles on a Hopper GPU, else packed."""
    tiles = config.hidden_size % TILE == 0 and config.intermediate_size % TILE == 0 and {"moe_gate_up", "moe_down"}.isdisjoint(without)
    return "tiled" if tiles and dispatch.for_hopper() else "packed"


def first_layers(config: Config, layers: int) -> Config:
    """The same widths, fewer layers."""
    layers = min(layers, config.num_hidden_layers)
    return dataclasses.replace(config, num_hidden_layers=layers, layer_types=config.layer_types[:layers])


def params(config: Config, experts: ExpertsForm, seed: int = 0, without: tuple[str, ...] = ()) -> Params:
    """What `init_params` makes in bfloat16, array by array, so that at most one is in the making; programs do `without` some kernels."""
    leaves, tree = jax.tree.flatten(_table(config, experts), is_leaf=is_spec)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    arrays = []
    for spec, key in zip(leaves, keys, strict=True):
        arrays.append(jax.block_until_ready(_draw(key, spec.init, spec.shape, spec.dtype)))
    return jax.tree.unflatten(tree, arrays).replace(without=without)


def full_cache(config: Config, batch: int, context: int, room: int, *, chunk: int = CHUNK, seed: int = 1) -> Cache:
    """A cache whose rows hold `context` random keys and values, with room for `room` tokens more."""
    empty = init_cache(config, batch, context + room, chunk=chunk)
    keys = jax.random.split(jax.random.key(seed), 2 * config.num_hidden_layers)
    pages = []
    for key, old in zip(keys, (*empty.k, *empty.v), strict=True):
        pages.append(jax.block_until_ready(_draw(key, jax.random.normal, old.shape, old.dtype)))
    half = config.num_hidden_layers
    return empty.replace(k=tuple(pages[:half]), v=tuple(pages[half:]), length=jnp.full(batch, context, jnp.int32))


def state(config: Config, cache: Cache, budget: int, seed: int = 2) -> State:
    """Greedy rows that nothing but their budget of tokens ends, each with a random newest token."""
    batch = cache.length.shape[0]
    greedy = sampling_state.stack([Sampling(temperature=0, max_tokens=budget, ignore_eos=True)] * batch, vocab_size=config.vocab_size)
    rows = make_rows(jax.device_get(greedy), cache.length, tokens(config, batch, seed=seed), [budget] * batch)
    return decode.place(init_state(cache, greedy), jnp.arange(batch), rows)


def tokens(config: Config, *shape: int, seed: int) -> jax.Array:
    """Random ids, int32."""
    return jax.random.randint(jax.random.key(seed), shape, 0, config.vocab_size, jnp.int32)


@functools.cache
def _table(config: Config, experts: ExpertsForm) -> Params:
    return abstract_params(config, experts=experts)  # the same functions `init` each time, so that they are compiled once


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key, init, shape, dtype):
    return init(key, shape, dtype)
