"""Hopper GPUs and kernels for them: which devices these are, whether this jax compiles kernels, whether kernels are interpreted.

Mosaic GPU itself is loaded by what uses it (`primitives`, the ops' kernels), since it takes long to import.
"""

import contextlib

import jax
from jax._src import config as _jax_config

MULTIPROCESSORS = 132
SHARED_MEMORY = 232_448  # bytes a block may have
H200 = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", platform="gpu", num_cores=MULTIPROCESSORS)
EMULATED = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", platform="emulator", num_cores=MULTIPROCESSORS)


def is_hopper(device_kind: str) -> bool:
    """Whether a device of this name has compute capability 9.0: H100, H200, H800, H20, GH200."""
    return any(word.startswith(("H100", "H200", "H800", "H20", "GH200")) for word in device_kind.split())


def unsupported() -> str | None:
    """Why kernels cannot be written with this jax; None if they can."""
    if (0, 11, 2) <= jax.__version_info__ < (0, 13):
        return None
    return f"the Pallas kernels are written for jax 0.11.2 to 0.12, this is jax {jax.__version__}"


@contextlib.contextmanager
def interpret(*, detect_races: bool = False):
    """Within this, kernels that are traced run in Mosaic GPU's interpreter on the CPU, as if on an H200.

    Warpgroups of a cluster that wait for each other each hold one of XLA's threads, of which there are as many as cores: with fewer than
    warpgroups the interpreter may hang. NPROC in the environment, before JAX starts, says how many XLA shall have.
    """
    import jax.experimental.pallas.mosaic_gpu as plgpu

    mesh = jax.sharding.AbstractMesh((), (), abstract_device=H200)
    with jax.sharding.use_abstract_mesh(mesh), plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=detect_races)):
        yield


def interpreting() -> bool:
    """Whether kernels that are traced now will be interpreted."""
    return _jax_config.pallas_tpu_interpret_mode_context_manager.value is not None


def emulating() -> bool:
    """Whether programs that are traced now are for a CPU on which the emulator runs their kernels."""
    return jax.sharding.get_abstract_mesh().abstract_device == EMULATED
