"""JAX's persistent compilation cache, for the entry points: compiled programs outlive the process."""

from pathlib import Path

import jax
import platformdirs


def enable(folder: str = "default") -> Path | None:
    """Keeps compiled programs in a folder; 'default' is the user's cache folder, 'off' turns this off.

    A JAX_COMPILATION_CACHE_DIR that the user has set wins over 'default'. Returns the folder, or None for none.
    """
    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if folder == "default":
        folder = jax.config.jax_compilation_cache_dir or platformdirs.user_cache_path("gptoss-jax") / "compiled"
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return path
