"""Whether what is about to be timed computes the model: its logits against a float32 evaluation, and XLA's plain bfloat16 form's.

A model of the same widths with two layers, one of each kind, is enough: every shape of the whole one occurs in it. The measure is the
plain form, which rounds as often. Medians over tokens are compared, for rounding may route a few to another expert, in one form or in both.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp

from benchmarks import random_model
from gptoss_jax.config import Config
from gptoss_jax.model.cache import Cache, init_cache
from gptoss_jax.model.params import ExpertsForm, Params
from gptoss_jax.model.transformer import decode_step, extend, prefill, unembed
from pallas_kernels.mxfp4.tiles import Tiles, from_tiles

LAYERS = 2
TIMES = 2.0  # of the plain form's error
SANE = 0.05  # what the plain form's error may be at most
WORST = 0.95  # of one token: zeros are off by 1, other wrong numbers by more; one that rounding sends to another expert by up to 0.6
_ROWS = 16  # a few tokens would be too few to compare errors by: smaller batches take several steps from the same cache
_POSITIONS = 64  # of a prompt, whose logits are compared


@dataclasses.dataclass(frozen=True)
class Check:
    """Relative errors of tokens' logits to float32, |got - exact| / |exact|.

    Attributes:
      error: of the form to be timed; the median over tokens.
      plain_error: of XLA's plain form, likewise.
      worst: of the token that the form to be timed is furthest off at.
    """

    error: float
    plain_error: float
    worst: float

    @property
    def passed(self) -> bool:
        return self.error <= TIMES * self.plain_error and self.plain_error <= SANE and self.worst <= WORST  # False for NaN

    def __str__(self) -> str:
        bound = f"{TIMES:g} times the plain form's {self.plain_error:.3g}, which may be {SANE:g}"
        return f"logits are {self.error:.3g} from float32 (bound: {bound}), at the worst token {self.worst:.3g} (bound: {WORST:g})"


def decode_check(config: Config, experts: ExpertsForm, batch: int, context: int, without: tuple[str, ...] = ()) -> Check:
    """Of a decode step of so many rows whose caches hold `context` tokens, without some kernels."""
    config, params = _small(config, experts, without)
    cache = random_model.full_cache(config, batch, context, 1)
    every = jnp.ones(batch, bool)
    timed = jax.jit(lambda params, cache, tokens: decode_step(params, config, cache, tokens, active=every)[0])
    layers = jax.jit(lambda params, cache, tokens: prefill(params, config, cache, tokens[:, None], every.astype(jnp.int32))[0])
    steps = random_model.tokens(config, -(-_ROWS // batch), batch, seed=3)
    repeated = lambda f: lambda params, cache: jnp.stack([f(params, cache, tokens) for tokens in steps])
    return _compare(repeated(timed), repeated(layers), params, cache)


def prefill_check(config: Config, experts: ExpertsForm, batch: int, length: int, chunk: int, without: tuple[str, ...] = ()) -> Check:
    """Of prompts of so many tokens in chunks, at positions of the last chunk."""
    config, params = _small(config, experts, without)
    cache = init_cache(config, batch, length, chunk=chunk)
    tokens = random_model.tokens(config, batch, length, seed=3)
    last = (length - 1) % chunk  # of the last chunk's positions
    picked = jnp.asarray([i * last // (_POSITIONS - 1) for i in range(_POSITIONS)])

    def last_chunk(params, cache):
        for start in range(0, length, chunk):
            part = tokens[:, start : start + chunk]
            x, cache = extend(params, config, cache, part, jnp.full(batch, part.shape[1], jnp.int32))
        return unembed(params, config, x[:, picked])

    return _compare(jax.jit(last_chunk), jax.jit(lambda params, cache: last_chunk(params, cache)), params, cache)


def _small(config: Config, experts: ExpertsForm, without: tuple[str, ...]) -> tuple[Config, Params]:
    small = random_model.first_layers(config, LAYERS)
    return small, random_model.params(small, experts, 4, without)


def _compare(timed, plain, params: Params, cache: Cache) -> Check:
    got = timed(params, cache)
    params = jax.tree.map(_published, params, is_leaf=_is_tiles)
    with _xla_only():
        rounded = plain(params, cache)
        with jax.default_matmul_precision("highest"):
            exact = plain(*jax.tree.map(_float32, (params, cache)))
    errors = _errors(got, exact)
    return Check(float(jnp.median(errors)), float(jnp.median(_errors(rounded, exact))), float(jnp.max(errors)))


def _is_tiles(x) -> bool:
    return isinstance(x, Tiles)


def _published(x):
    """Experts in tiles as they were published, so that the plain form shares no code with the kernels."""
    return _untile(x) if _is_tiles(x) else x


@jax.jit
def _untile(experts: Tiles):
    return jax.lax.map(from_tiles, experts)  # one by one: what lies between takes several bytes a weight


@contextlib.contextmanager
def _xla_only():
    """Within this, ops that are traced take XLA's form: they are told of a device that no kernel is written for."""
    device = jax.sharding.AbstractDevice(device_kind="one without kernels", platform=jax.default_backend(), num_cores=1)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        yield


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def _errors(got: jax.Array, exact: jax.Array) -> jax.Array:
    """Of each token: [..., V], [..., V] -> [...]."""
    return jnp.linalg.norm(got - exact, axis=-1) / jnp.linalg.norm(exact, axis=-1)
