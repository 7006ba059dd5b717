"""Which kernels a model's programs do without: what `load` is told, and what was found on the GPU at hand (`pallas_kernels.check`)."""

from typing import Literal

import jax

from gptoss_jax.config import Config
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Partition
from gptoss_jax.quoting import quoted
from pallas_kernels import dispatch, hopper

Kernels = Literal["auto", "on", "off"]
_MANY = 32  # experts, above which the shapes of 120b are those to check


def check_argument(kernels: str) -> None:
    """Raises ValueError where it is none of `Kernels`."""
    if not isinstance(kernels, str) or kernels not in ("auto", "on", "off"):
        raise ValueError(f"kernels must be 'auto', 'on' or 'off'; got {quoted(kernels)}; use one of these.")


def left_out(kernels: Kernels, config: Config, dtype: str, partition: Partition | None) -> tuple[str, ...]:
    """Names out of `dispatch.KERNELS`, in whose places XLA's forms run; () where no kernel could run.

    Raises:
        ValueError: "on", and there is no GPU for kernels.
    """
    if not on_hopper(partition):
        if kernels == "on":
            why = hopper.unsupported() or f"JAX runs on {_device(partition).device_kind}"
            raise ValueError(f"kernels='on' needs a Hopper GPU (H100, H200), and {why}; pass kernels='auto', which runs XLA's forms here.")
        return ()
    if kernels == "off":
        return dispatch.KERNELS
    device = _device(partition)
    if kernels == "on" or dispatch.pretending() or not hopper.is_hopper(device.device_kind) or dtype != "bfloat16":
        return ()  # all; or none will run: none covers float32
    from pallas_kernels import check

    key = check.key(device.device_kind, device.client.platform_version)
    cache = jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
    preset = "20b" if config.num_local_experts <= _MANY else "120b"
    bad = check.left_out(key, preset, device=device.local_hardware_id, compilation_cache=cache or None)
    return tuple(name for name in dispatch.KERNELS if name in bad)


def on_hopper(partition: Partition | None) -> bool:
    """Whether the model's programs will run on a Hopper GPU."""
    return sharding.device_of(partition).platform == jax.default_backend() and dispatch.for_hopper()


def _device(partition: Partition | None) -> jax.Device:
    """That which is checked."""
    return sharding.device_of(partition)
