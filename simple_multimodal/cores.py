"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """Return the number of cores this process may run on: those of its affinity mask, where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
