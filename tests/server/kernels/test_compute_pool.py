"""The pool of compute threads."""

from __future__ import annotations

import threading
import weakref
from functools import partial

import pytest
import torch

from server.kernels.compute_pool import ComputePool


@pytest.mark.parametrize("num_threads", [1, 2, 4])
def test_all_tasks_are_done_after_finish(num_threads: int) -> None:
    pool = ComputePool(num_threads)
    for _ in range(50):
        done: list[int] = []
        for number in range(20):
            pool.start(partial(done.append, number))
        pool.finish()
        assert sorted(done) == list(range(20))


def test_tasks_run_at_the_same_time_on_all_threads() -> None:
    pool = ComputePool(3)
    together = threading.Barrier(3, timeout=30)  # passes only if three tasks wait at once
    for _ in range(3):
        pool.start(lambda: together.wait() and None)
    pool.finish()


def test_a_failed_task_raises_and_the_others_are_done() -> None:
    pool, done = ComputePool(2), []

    def fail() -> None:
        raise RuntimeError("no")

    pool.start(fail)
    for number in range(5):
        pool.start(partial(done.append, number))
    with pytest.raises(RuntimeError, match="no"):
        pool.finish()
    assert len(done) == 5
    pool.finish()


def test_tasks_run_in_inference_mode_with_one_thread_of_torch() -> None:
    pool, found = ComputePool(2), []
    both = threading.Barrier(2, timeout=30)

    def look() -> None:
        both.wait()
        found.append((threading.current_thread().name, torch.is_inference_mode_enabled(), torch.get_num_threads()))

    pool.start(look)
    pool.start(look)
    with torch.inference_mode():
        pool.finish()
    assert ("compute-1", True, 1) in found


def test_threads_end_with_the_pool() -> None:
    pool = ComputePool(3)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("compute-")]
    gone = weakref.ref(pool)
    del pool
    assert gone() is None
    for thread in mine[-2:]:
        thread.join(30)
        assert not thread.is_alive()
