"""A measurement in a process of its own, so that its peak memory and its devices are those of this work alone."""

from collections.abc import Mapping
import json
import os
from pathlib import Path
import resource
import subprocess
import sys

from absl import flags
import jax

from gptoss_jax.parallel import launch, sharding

CHILD = flags.DEFINE_bool("child", False, "Measure in this process; what the benchmark starts itself with.")


def result(module: str, environment: Mapping[str, str] | None = None) -> dict:
    """What the benchmark `module`, started again with this process' flags and --child, prints as its last line of JSON.

    Args:
        module: such as "benchmarks.large".
        environment: variables that it gets besides this process' own.
    """
    command = [sys.executable, "-m", module, *sys.argv[1:], "--child"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=os.environ | dict(environment or {}), cwd=root, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the measuring process ended with status {done.returncode}; its message is above.")
    return json.loads(done.stdout.splitlines()[-1])


def peak_gb() -> float:
    """Most memory that this process was resident in so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def cpu_mesh(text: str) -> jax.sharding.Mesh | None:
    """A mesh of devices that XLA pretends to have on a CPU: "1x8", or "none". Call it before JAX starts.

    Raises:
        ValueError: the text is neither.
    """
    if text == "none":
        return None
    data, model = launch.shape(text)
    jax.config.update("jax_num_cpu_devices", data * model)
    return sharding.mesh(data, model, devices=jax.devices("cpu"))
