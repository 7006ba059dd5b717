"""What device there is, as a line of JSON, found out in a process of its own: the one that asks leaves the device's memory to others."""

import importlib.util
import json
import os

from absl import app


def main(argv: list[str]) -> None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    from pallas_kernels import hopper
    from pallas_kernels.check import verdicts

    device = jax.devices()[0]
    key = verdicts.key(device.device_kind, device.client.platform_version)
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    found = {"device": key.device, "driver": key.driver, "jax": key.jax, "jaxlib": key.jaxlib, "kernels": key.kernels[:12]}
    found |= {"gigabytes": round(memory / 1e9, 1), "hopper": hopper.is_hopper(key.device) and not hopper.unsupported()}
    found["peer"] = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
