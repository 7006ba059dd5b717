"""Runs a module as its own program, in a process that the system kills when the one that started it ends, however that ends.

python -m benchmarks.gpu_day.mortal MODULE [ARGUMENTS]
"""

import ctypes
import runpy
import signal
import sys

_SET_DEATH_SIGNAL = 1  # of Linux' prctl


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
