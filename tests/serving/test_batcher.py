"""Requests that share batches: which are run together, which are not run at all, and what errors cost."""

import asyncio
import gc
import random
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
import torch

from simple_multimodal.serving.batcher import Batcher
from simple_multimodal.serving.waiting import ClosedError, DeadlineError, QueueFullError, result_of

LIMIT_SECONDS = 60.0


class Model:
    """Doubles items, and notes its batches. It waits at the item `"gate"` until `opened` is set."""

    def __init__(self):
        self.batches = []
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, items):
        self.batches.append(items)
        if "gate" in items:
            self.entered.set()
            assert self.opened.wait(LIMIT_SECONDS)
        return [item * 2 for item in items]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def make(model):
    """Make a batcher that is closed at the end of the test."""
    batchers = []

    def make(run=model, **settings) -> Batcher:
        batchers.append(Batcher(run, **settings))
        return batchers[-1]

    yield make
    model.opened.set()
    for batcher in batchers:
        batcher.close()


@pytest.fixture
def busy(make, model):
    """Make a batcher whose model is running, so that all further items wait."""

    def busy(run=model, **settings) -> Batcher:
        batcher = make(run, **settings)
        batcher.submit("gate")
        assert model.entered.wait(LIMIT_SECONDS)
        return batcher

    return busy


def results(jobs):
    return [job.result(LIMIT_SECONDS) for job in jobs]


def test_a_request_that_comes_alone_runs_alone(make, model):
    batcher = make()
    assert [batcher.submit(item).result(LIMIT_SECONDS) for item in (1, 2)] == [2, 4]
    assert model.batches == [[1], [2]]


def test_what_came_in_while_a_batch_ran_is_the_next_batch(busy, model):
    batcher = busy(max_batch_size=4)
    jobs = [batcher.submit(number) for number in range(9)]
    assert batcher.waiting.num_waiting == 9
    model.opened.set()
    assert results(jobs) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert model.batches == [["gate"], [0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert batcher.batch_sizes == Counter({1: 2, 4: 2})
    assert batcher.waiting.num_waiting == 0 and batcher.waiting.num_accepted == 10


def test_items_of_different_keys_are_not_batched(busy, model):
    batcher = busy()
    jobs = [batcher.submit(number, key=number % 3) for number in range(7)]
    model.opened.set()
    assert results(jobs) == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches[1:] == [[0, 3, 6], [1, 4], [2, 5]]  # the kind of the one that has waited longest is next


@pytest.mark.parametrize("limits", [{"max_waiting": 3}, {"max_waiting_bytes": 30}])
def test_a_full_queue_refuses_items(busy, model, limits):
    batcher = busy(**limits)
    jobs = [batcher.submit(number, num_bytes=10) for number in range(3)]
    for _ in range(2):
        with pytest.raises(QueueFullError, match="3 requests of 30 bytes are waiting"):
            batcher.submit(3, num_bytes=10)
    assert batcher.waiting.num_refused == 2 and batcher.waiting.waiting_bytes == 30
    model.opened.set()
    assert results(jobs) == [0, 2, 4]
    assert batcher.submit(3, num_bytes=10).result(LIMIT_SECONDS) == 6
    assert batcher.waiting.waiting_bytes == 0


def test_an_item_larger_than_the_queue_is_refused(make):
    with pytest.raises(QueueFullError):
        make(max_waiting_bytes=30).submit(1, num_bytes=31)


def test_a_cancelled_item_is_not_run_and_leaves_its_place_at_once(busy, model):
    batcher = busy(max_waiting=2)
    first, second = batcher.submit(1, num_bytes=5), batcher.submit(2)
    assert first.cancel() and first.cancel()
    assert (batcher.waiting.num_cancelled, batcher.waiting.num_waiting, batcher.waiting.waiting_bytes) == (1, 1, 0)
    third = batcher.submit(3)
    model.opened.set()
    assert results([second, third]) == [4, 6]
    assert model.batches[1:] == [[2, 3]]
    with pytest.raises(CancelledError):
        first.result()
    assert not second.cancel()


def test_an_expired_item_is_not_run(busy, model):
    batcher = busy(max_batch_size=2)
    now = time.monotonic()
    late = [batcher.submit(number, deadline=now) for number in range(3)]
    jobs = [batcher.submit(number, deadline=now + LIMIT_SECONDS) for number in range(3, 5)]
    model.opened.set()
    assert results(jobs) == [6, 8]
    assert model.batches[1:] == [[3, 4]]
    for job in late:
        with pytest.raises(DeadlineError, match="within its time limit"):
            job.result(LIMIT_SECONDS)
    assert batcher.waiting.num_expired == 3 and batcher.num_errors == 0


@pytest.mark.parametrize("error", [ValueError, MemoryError, torch.OutOfMemoryError])
def test_an_error_costs_only_the_item_that_causes_it(busy, model, error):
    def run(items):
        if "bad" in items:
            raise error("too much")
        return model(items)

    batcher = busy(run)
    jobs = [batcher.submit(item) for item in (1, "bad", 2)]
    model.opened.set()
    assert results([jobs[0], jobs[2]]) == [2, 4]
    with pytest.raises(error, match="too much"):
        jobs[1].result(LIMIT_SECONDS)
    assert (batcher.num_failed_batches, batcher.num_errors) == (1, 1)
    assert batcher.submit(3).result(LIMIT_SECONDS) == 6


def test_a_batch_that_is_too_large_for_memory_is_run_one_by_one(busy, model):
    def run(items):
        if len(items) > 1:
            raise torch.OutOfMemoryError
        return model(items)

    batcher = busy(run)
    jobs = [batcher.submit(number) for number in range(3)]
    model.opened.set()
    assert results(jobs) == [0, 2, 4]
    assert (batcher.num_failed_batches, batcher.num_errors) == (1, 0)


def test_a_wrong_number_of_results_reaches_no_client(busy, model):
    batcher = busy(lambda items: model(items)[:1])
    jobs = [batcher.submit(number) for number in range(2)]
    model.opened.set()
    assert results(jobs) == [0, 2]
    assert batcher.num_failed_batches == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_that_ends_the_model_answers_all(busy, model):
    def run(items):
        if 1 in items:
            raise GeneratorExit  # ends the thread, as `SystemExit` would
        return model(items)

    batcher = busy(run, max_batch_size=2)
    jobs = [batcher.submit(number) for number in range(5)]
    assert batcher.is_running
    model.opened.set()
    for job in jobs:
        with pytest.raises(ClosedError):
            job.result(LIMIT_SECONDS)
    assert not batcher.is_running
    with pytest.raises(ClosedError, match="no more requests"):
        batcher.submit(6)


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_everything_that_was_accepted(busy, model, drain):
    batcher = busy(max_batch_size=2)
    jobs = [batcher.submit(number) for number in range(5)]
    closing = threading.Thread(target=batcher.close, kwargs={"drain": drain})
    closing.start()
    while batcher.is_running:
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        batcher.submit(5)
    model.opened.set()
    closing.join(LIMIT_SECONDS)
    if drain:
        assert results(jobs) == [0, 2, 4, 6, 8]
    else:
        assert all(isinstance(job.exception(LIMIT_SECONDS), ClosedError) for job in jobs)
        assert model.batches == [["gate"]]


def test_answers_reach_their_own_requests_while_others_are_cancelled_or_expire(make):
    """Items are shuffled numbers; the batcher fails for some, and its batches have all sizes."""

    def run(items):
        if any(item % 97 == 13 for item in items):
            raise ValueError
        return [item * 2 for item in items]

    batcher = make(run, max_batch_size=8, max_waiting=1000)
    numbers = list(range(1200))
    random.Random(0).shuffle(numbers)

    def client(own):
        found, generator = {}, random.Random(own[0])
        jobs = []
        for number in own:
            kind = generator.choice(["answer", "answer", "cancel", "expire"])
            deadline = time.monotonic() if kind == "expire" else float("inf")
            jobs.append((number, kind, batcher.submit(number, key=number % 2, deadline=deadline)))
            if kind == "cancel":
                jobs[-1][2].cancel()
        for number, kind, job in jobs:
            try:
                found[number] = kind, job.result(LIMIT_SECONDS)
            except (CancelledError, DeadlineError, ValueError) as error:
                found[number] = kind, type(error)
        return found

    with ThreadPoolExecutor(12) as pool:
        found = dict(item for part in pool.map(client, (numbers[n::12] for n in range(12))) for item in part.items())
    assert found.keys() == set(numbers)
    for number, (kind, result) in found.items():
        expected = ValueError if number % 97 == 13 else number * 2
        allowed = {"answer": set(), "cancel": {CancelledError}, "expire": {DeadlineError}}[kind]
        assert result in allowed | {expected}
    dropped = Counter(result for _, result in found.values() if result in (CancelledError, DeadlineError))
    assert batcher.waiting.num_cancelled == dropped[CancelledError] > 0
    assert batcher.waiting.num_expired == dropped[DeadlineError] > 0
    assert batcher.waiting.num_accepted == 1200


def test_coroutines_wait_for_results(busy, model):
    async def clients():
        jobs = [batcher.submit(number) for number in range(64)]
        tasks = [asyncio.create_task(result_of(job)) for job in jobs]
        await asyncio.sleep(0)
        for task in tasks[::3]:  # these clients hang up
            task.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting.num_waiting == 42
        model.opened.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    batcher = busy()
    found = asyncio.run(clients())
    assert [isinstance(result, asyncio.CancelledError) for result in found] == [n % 3 == 0 for n in range(64)]
    assert [result for n, result in enumerate(found) if n % 3] == [2 * n for n in range(64) if n % 3]
    assert batcher.waiting.num_cancelled == 22
    assert not {n for batch in model.batches for n in batch if n != "gate"} & set(range(0, 64, 3))


def test_a_coroutine_gets_the_error(make):
    def run(items):
        raise MemoryError("no")

    with pytest.raises(MemoryError, match="no"):
        asyncio.run(result_of(make(run).submit(1)))


class Large:
    """Stands for a tensor."""

    def __mul__(self, factor):
        return Large()


def test_neither_items_nor_results_are_held_after_the_answer(make):
    """Without the garbage collector, which may come late."""
    items, results, jobs = [], [], []

    async def client(batcher, holds_job):
        item = Large()
        items.append(weakref.ref(item))
        job = batcher.submit(item)
        del item
        results.append(weakref.ref(await result_of(job)))
        if holds_job:
            jobs.append(job)

    batcher = make(lambda items: [item * 2 for item in items])
    gc.collect()
    gc.disable()
    try:
        for holds_job in (False, True, False):
            asyncio.run(client(batcher, holds_job))
        ends = time.monotonic() + LIMIT_SECONDS
        while any(
            reference() is not None for reference in (*items, results[0], results[2])
        ):  # the thread goes on to wait
            assert time.monotonic() < ends
            time.sleep(0.001)
    finally:
        gc.enable()


def test_an_error_does_not_hold_the_tensors_of_its_batch(make):
    held = []

    def run(items):
        tensors = Large()
        held.append(weakref.ref(tensors))
        raise ValueError("wrong")

    error = make(run).submit(1).exception(LIMIT_SECONDS)
    assert error.__traceback__ is not None and held[0]() is None


def test_numbers_that_allow_no_batch_are_refused():
    for settings in ({"max_batch_size": 0}, {"max_waiting": 0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            Batcher(list, **settings)
