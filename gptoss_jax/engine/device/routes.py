"""Which experts each token is routed to, recorded while a program is traced. Knows the model's hooks, not its arrays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config


class Recorder:
    """Records routes in one trace: pass `hook` to the model, then ask for `routes` in the same function, or body of a loop.

    Args:
      config: of the model.
      on: whether to record at all; otherwise there is no hook, so that the program is the one without a recorder.
    """

    def __init__(self, config: Config, on: bool):
        self._config, self._on = config, on
        self._seen: dict[str, jax.Array] = {}
        self.hook: Callable[[str, jax.Array], jax.Array] | None = self._record if on else None

    @property
    def routes(self) -> jax.Array | None:
        """The experts of every token, [B, T, L, A] uint8, uint16 from 256 of them on; the largest gate's first, E for none. None if off.

        Those of tokens that do not count mean nothing.
        """
        if not self._on:
            return None
        layers = [self._seen[f"layers.{i}.moe.experts"] for i in range(self._config.num_hidden_layers)]
        experts, none = jnp.stack(layers, 2), self._config.num_local_experts  # a hook may choose what is none
        return jnp.where((experts < 0) | (experts > none), none, experts).astype(routes_dtype(self._config))

    def _record(self, name: str, value: jax.Array) -> jax.Array:
        self._seen[name] = value
        return value


def routes_dtype(config: Config) -> jnp.dtype:
    """The narrowest of uint8 and uint16 that holds every expert's index, and one more."""
    return jnp.dtype("uint8" if config.num_local_experts < 256 else "uint16")
