"""The C library's allocator, told that a training step needs the memory of the last one again."""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT, GROWTH, LARGEST = 2**30, 2**26, 2**25
"""Bytes: kept when freed, asked of the system at a time, and of a block that is still kept."""


def keep_memory() -> None:
    """Keep freed memory in this process (glibc; others are left alone).

    By default the values of a step go back to the system one by one, and every page of the next
    step's is cleared anew, which takes a quarter of the time of training on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, size in (
        (M_TRIM_THRESHOLD, KEPT),
        (M_TOP_PAD, GROWTH),
        (M_MMAP_THRESHOLD, LARGEST),
    ):
        mallopt(option, size)
