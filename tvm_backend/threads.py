"""How many threads the compiled libraries run on, changeable while a process runs."""

import os

from iqvit.errors import TargetError

VARIABLE = "TVM_NUM_THREADS"
BIG_CORES = 1
"""TVM's mode `kBig`: use the given number of the fastest cores."""

_capacity = 0


def prepare_threads() -> int:
    """Let TVM's thread pool hold a thread for every core; returns how many it can hold.

    Its size is read once, when the first library runs in a Python thread, and would be half of the
    cores on x86. A number that the user set in the environment stays.
    """
    global _capacity  # noqa: PLW0603
    if _capacity == 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ.setdefault(VARIABLE, str(cores or 1))
        _capacity = int(os.environ[VARIABLE])
    return _capacity


def set_threads(threads: int) -> None:
    """Run libraries that are called from this Python thread on `threads` threads from now on.

    Raises `TargetError` for a number below 1 or above what `prepare_threads` returned.
    """
    capacity = prepare_threads()
    if not 1 <= threads <= capacity:
        raise TargetError(
            f"cannot run on {threads} threads: 1 to {capacity} are possible here; for more, set "
            f"{VARIABLE} in the environment before the program starts"
        )
    import tvm

    configure = tvm.get_global_func("runtime.config_threadpool")
    if configure is None:
        raise TargetError("this TVM runtime has no thread pool to configure")
    configure(BIG_CORES, threads)
