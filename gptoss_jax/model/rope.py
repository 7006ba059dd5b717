"""Rotary position embedding with YaRN's stretched frequencies (arXiv:2309.00071)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.config import Config


def inverse_frequencies(config: Config) -> np.ndarray:
    """Radians per position of each of the H/2 rotating pairs, [H/2] float32.

    Pairs that turn more than beta_fast times within the original context keep their frequency, those that turn less than
    beta_slow times are slowed by the factor, and a linear ramp lies between. gpt-oss does not round the ramp's ends.
    """
    half = config.head_dim // 2
    frequency = config.rope_theta ** -(np.arange(half) / half)
    if config.rope_factor == 1:
        return frequency.astype(np.float32)

    def pair_turning(times: float) -> float:  # which pair turns this often within the original context
        return half * math.log(config.rope_original_context / (times * 2 * math.pi)) / math.log(config.rope_theta)

    low, high = pair_turning(config.rope_beta_fast), pair_turning(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = max(math.floor(low), 0), min(math.ceil(high), config.head_dim - 1)
    ramp = np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0, 1)
    return (frequency / config.rope_factor * ramp + frequency * (1 - ramp)).astype(np.float32)


def concentration(config: Config) -> float:
    """The factor by which YaRN scales queries and keys: 0.1 ln(factor) + 1."""
    return 0.1 * math.log(config.rope_factor) + 1


def tables(config: Config, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, scaled by the concentration: positions [B, T] -> two of [B, T, H/2] float32."""
    angle = positions[:, :, None].astype(jnp.float32) * jnp.asarray(inverse_frequencies(config))[None, None, :]
    scale = jnp.float32(concentration(config))
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [B, T, heads, H] rotated by its position's angles, float32. Pairs are (i, i + H/2), not neighbours."""
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
