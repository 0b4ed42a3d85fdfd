"""Reading threads, and their number."""

import os
import pickle
import threading

from simple_multimodal.data.reading import MAX_THREADS, ThreadPool, default_num_threads


def name_of_thread() -> str:
    return threading.current_thread().name


def test_threads_are_kept_between_batches():
    pool = ThreadPool(1)
    assert pool.submit(threading.get_ident)() == pool.submit(threading.get_ident)()
    assert pool.submit(name_of_thread)().startswith("collator")


def test_a_pickled_pool_starts_its_own_threads():
    pool = ThreadPool(2)
    pool.submit(name_of_thread)()
    copy = pickle.loads(pickle.dumps(pool))  # as for a spawned worker
    assert copy.num_threads == 2 and copy.submit(name_of_thread)().startswith("collator")


def test_threads_are_shared_among_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert default_num_threads() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_num_threads() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert default_num_threads() == MAX_THREADS
