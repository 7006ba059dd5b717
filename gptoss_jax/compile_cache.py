"""JAX's persistent compilation cache, for the entry points: programs, lowered (`engine.lowered`) and compiled, outlive the process."""

import logging
import os
from pathlib import Path

import jax
import platformdirs


def enable(folder: str = "default") -> Path | None:
    """Keeps programs in a folder; 'default' is the user's cache folder, 'off' turns this off. Call it before anything is compiled.

    A JAX_COMPILATION_CACHE_DIR that the user has set wins over 'default'. What lies there is run: a new folder, and the default one, are
    their owner's alone. Where 'default' cannot be made, in a container without a home, nothing is kept, and a logged sentence says so;
    of what cannot be written or read later JAX says so, and goes on.

    Returns:
      The folder; None for none, or for one that is no local folder ("gs://..."), which JAX alone uses.

    Raises:
      ValueError: the folder that is named cannot be one.
    """
    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if not folder:
        raise ValueError("the compilation cache must be a folder, 'default' or 'off'; got an empty name; name a folder.")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    own = platformdirs.user_cache_path("gptoss-jax") / "compiled"
    wanted = (jax.config.jax_compilation_cache_dir or str(own)) if folder == "default" else folder
    if "://" in wanted:
        jax.config.update("jax_compilation_cache_dir", wanted)
        return None
    path = own if wanted == str(own) else Path(os.path.expanduser(wanted))
    try:
        _make(path, own=path == own)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if folder != "default":
            raise ValueError(f"the compilation cache must be a folder; {path} cannot be one ({reason}); name another, or 'off'.") from None
        logging.getLogger(__name__).warning("No compiled programs are kept: %s cannot be made (%s).", path, reason)
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path


def _make(path: Path, *, own: bool) -> None:
    """Makes a folder where there is none, the owner's alone if it is our `own`. Raises OSError or ValueError where it cannot be."""
    if own and not path.is_absolute():
        raise ValueError("there is no home folder")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own:
        path.chmod(0o700)
