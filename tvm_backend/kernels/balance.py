"""How evenly threads share tasks, so that kernels can be cut for it."""

from collections.abc import Sequence

THREADS = (1, 2, 4)
"""The numbers of threads that a cut is chosen for."""


def parts_of(whole: int, part: int) -> list[int]:
    """`whole` in parts of `part`, and what is left."""
    return [min(part, whole - begin) for begin in range(0, whole, part)]


def even_tasks(whole: int, most: int) -> int:
    """The fewest tasks of at most `most` each that two threads share evenly, or one."""
    tasks = -(-whole // most)
    return tasks if tasks == 1 else tasks + tasks % 2


def slowness(costs: Sequence[float]) -> float:
    """Time of the slowest thread, times the threads, summed over `THREADS`.

    Threads take equal numbers of consecutive tasks, as TVM's thread pool deals them out.
    """
    return sum(threads * _slowest(costs, threads) for threads in THREADS)


def _slowest(costs: Sequence[float], threads: int) -> float:
    share = -(-len(costs) // threads)
    return max(sum(costs[begin : begin + share]) for begin in range(0, len(costs), share))
