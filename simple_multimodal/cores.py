"""Number of processor cores that this process may use."""

import os


def available_cores() -> int:
    """Return the number of cores that this process may run on, from its affinity mask if the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
