"""The process that checks one kernel; `watching.Child` starts it. An entry point: reads flags, sets the environment of JAX.

    python -m pallas_kernels.check.child --kernel=route --preset=20b --report=1 < /dev/stdin

For each case: what the reference gives, and the kernel compiled; then, once it is told to go on, each run a few times: right, and the same
to the bit. Phases are told as lines of JSON before they begin.
"""

import functools
import json
import os
import sys
import threading
import traceback

from absl import app, flags

_KERNEL = flags.DEFINE_string("kernel", None, "Which one.", required=True)
_PRESET = flags.DEFINE_string("preset", "20b", "Whose shapes.")
_WITHOUT = flags.DEFINE_list("without", [], "Kernels that are left out where all run together.")
_REHEARSE = flags.DEFINE_bool("rehearse", False, "A small call in Mosaic's interpreter, on the CPU.")
_DEVICE = flags.DEFINE_integer("device", None, "Number of the GPU among those that are visible; the default leaves all of them.")
_CACHE = flags.DEFINE_string("compilation_cache", None, "Folder of JAX's compilation cache; the default is none.")
_REPORT = flags.DEFINE_integer("report", None, "File descriptor that phases are written to.", required=True)


def main(argv: list[str]) -> None:
    report = os.fdopen(_REPORT.value, "w", buffering=1)

    def tell(phase: str, **more) -> None:
        report.write(json.dumps({"phase": phase} | more) + "\n")

    go = threading.Event()
    threading.Thread(target=_listen, args=(go,), daemon=True).start()
    if _REHEARSE.value:
        os.environ |= {"JAX_PLATFORMS": "cpu", "NPROC": "32"}  # warpgroups wait for each other, each in a thread of XLA's
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the process that asked may have most of the memory
    if _DEVICE.value is not None:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[_DEVICE.value] if _DEVICE.value < len(visible) else str(_DEVICE.value)
    phase = "device"
    try:
        import jax

        if _CACHE.value:
            jax.config.update("jax_compilation_cache_dir", _CACHE.value)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        from pallas_kernels.check import trial

        checked = functools.partial(trial.checked, preset=_PRESET.value, without=_WITHOUT.value)
        for phase, told in (trial.rehearsed if _REHEARSE.value else checked)(_KERNEL.value):
            if phase == "run":
                go.wait()
            tell(phase, **told)
    except Exception as error:
        traceback.print_exc()
        tell("failed", kind=type(error).__name__, message=str(error)[:2000])
        sys.exit(1)
    tell("end")
    report.close()
    sys.stdout.flush()
    os._exit(0)  # a device that was left in a bad state may keep an orderly end waiting


def _listen(go: threading.Event) -> None:
    """Waits for the word, then for the end of the one who gave it, after which nobody wants the answer."""
    if sys.stdin.buffer.readline():
        go.set()
        sys.stdin.buffer.read()
    os._exit(3)


if __name__ == "__main__":
    app.run(main)
