"""JAX's persistent compilation cache, for the entry points: programs, lowered (`engine.lowered`) and compiled, outlive the process."""

from pathlib import Path

import jax
import platformdirs


def enable(folder: str = "default") -> Path | None:
    """Keeps programs in a folder; 'default' is the user's cache folder, 'off' turns this off. Call it before anything is compiled.

    A JAX_COMPILATION_CACHE_DIR that the user has set wins over 'default'. What lies there is run: a new folder, and the default one, are
    their owner's alone. Returns the folder, or None for none.
    """
    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    own = platformdirs.user_cache_path("gptoss-jax") / "compiled"
    path = Path(jax.config.jax_compilation_cache_dir or own) if folder == "default" else Path(folder)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path == own:
        path.chmod(0o700)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return path
