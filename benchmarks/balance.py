"""How evenly a mesh's devices read experts in a decode step: whole experts dealt out, beside columns of every expert on each device.

    python -m benchmarks.balance

All devices wait for the slowest at the sum behind the experts, which is one all-reduce either way. Routing is drawn uniformly, which
flatters whole experts: a real router prefers some. Arithmetic only; no device is timed.
"""

from absl import app
import jax
import numpy as np

from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B, Config
from gptoss_jax.model.params import expert_width
from gptoss_jax.parallel import sharding
from pallas_kernels import bench

_BATCHES, _DRAWS = (1, 4, 16, 64), 2000


def dealt_out(config: Config, devices: int, batch: int, rng: np.random.Generator) -> float:
    """The most active experts that one device has, relative to the mean, where each has E / devices experts."""
    E, A = config.num_local_experts, config.num_experts_per_tok
    ratios = []
    for _ in range(_DRAWS):
        chosen = np.argsort(rng.random((batch, E)), axis=1)[:, :A]
        load = np.bincount(np.unique(chosen) // (E // devices), minlength=devices)
        ratios.append(load.max() / load.mean())
    return float(np.mean(ratios))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    jax.config.update("jax_num_cpu_devices", 8)
    rng, rows = np.random.default_rng(0), []
    for name, config in (("gpt-oss-20b", GPT_OSS_20B), ("gpt-oss-120b", GPT_OSS_120B)):
        for devices in (2, 4, 8):
            partition = sharding.partition(sharding.mesh(1, devices), config)
            columns = expert_width(config, "tiled", partition) / config.intermediate_size
            rows.append([name, str(devices), *(f"{dealt_out(config, devices, batch, rng):.2f}" for batch in _BATCHES), f"{columns:.2f}"])
    print(bench.table(["model", "devices", *(f"experts, batch {batch}" for batch in _BATCHES), "columns"], rows))


if __name__ == "__main__":
    app.run(main)
