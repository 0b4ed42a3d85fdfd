"""Rendezvous of processes that `torchrun` restarted."""

import datetime
import os

import torch.distributed as dist

_stores: list[dist.TCPStore] = []  # served by this process as long as it runs


def leave_store_of_launcher(timeout_seconds: float) -> None:
    """
    Let the processes that `torchrun` restarted use a store of their own. Call this before the process group is made.

    The store of the launcher still has the addresses of the processes that died, and early processes would connect to
    them.

    Args:
        timeout_seconds (`float`): How long to wait for the other processes.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    uses_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if restart == "0" or not uses_launcher or dist.is_initialized():
        return
    address, timeout = os.environ["MASTER_ADDR"], datetime.timedelta(seconds=timeout_seconds)
    store = dist.TCPStore(address, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    of_this_restart = dist.PrefixStore(f"restart {restart}", store)
    if os.environ["RANK"] == "0":
        _stores.append(dist.TCPStore(address, 0, is_master=True, wait_for_workers=False))
        of_this_restart.set("port", str(_stores[-1].port))
    os.environ["MASTER_PORT"] = of_this_restart.get("port").decode()
