"""Threads that compute side by side, each for itself.

torch can share one product among threads, but it wakes and waits for them at each: asleep they take longer to wake than
a product of one expert takes, and awake they take turns with whoever else wants the cores (docs/log.md). Experts are
independent, so here each is one thread's affair, and threads meet once a layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from weakref import finalize

import torch

from .native.library import Kernels

Task = Callable[[], None]

ROWS_LIKE_A_READ = 32  # so many rows take as long to multiply by a matrix as the matrix to read


def work_bytes(nbytes: float, num_rows: float) -> float:
    """How much work it is to multiply some rows by a matrix of so many bytes, as bytes that are read."""
    return nbytes * (1 + num_rows / ROWS_LIKE_A_READ)


class ComputePool:
    """Runs tasks on some threads, that of the caller among them. One caller at a time.

    Args:
        num_threads: with 1, tasks run where they are started.
        kernels: native ones on as many threads, for what they can compute; None is torch for everything.
    """

    def __init__(self, num_threads: int, kernels: Kernels | None = None):
        self.num_threads, self.kernels = num_threads, kernels
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._results: SimpleQueue[Exception | None] = SimpleQueue()
        self._num_started = 0
        for number in range(1, num_threads):
            arguments = (self._tasks, self._results)
            threading.Thread(target=_work, args=arguments, name=f"compute-{number}", daemon=True).start()
        self._stop = finalize(self, _stop, self._tasks, num_threads - 1)

    def start(self, task: Task) -> None:
        """Have a task run, in inference mode and with one of torch's threads."""
        if self.num_threads == 1:
            task()
            return
        self._num_started += 1
        self._tasks.put(task)

    def finish(self) -> None:
        """Help until all tasks are done.

        Raises:
            Exception: what the first failed task raised; all others are done nevertheless.
        """
        with suppress(Empty):
            while True:
                self._results.put(_outcome(self._tasks.get_nowait()))
        results = [self._results.get() for _ in range(self._num_started)]
        self._num_started = 0
        error = next((result for result in results if result is not None), None)
        if error is not None:
            raise error

    def close(self) -> None:
        """End the threads; the pool can't be used afterwards."""
        self._stop()


def _work(tasks: SimpleQueue[Task | None], results: SimpleQueue[Exception | None]) -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        while (task := tasks.get()) is not None:
            results.put(_outcome(task))
            del task  # what it refers to, before the next comes


def _outcome(task: Task | None) -> Exception | None:
    assert task is not None
    try:
        task()
    except Exception as error:  # noqa: BLE001  it is raised where the tasks were started
        return error
    return None


def _stop(tasks: SimpleQueue[Task | None], num_threads: int) -> None:
    for _ in range(num_threads):
        tasks.put(None)
