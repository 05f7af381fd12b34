"""A pool of threads that each compute one expert at a time.

torch can split one product among threads, but it wakes and joins them at each product. Waking a thread takes longer
than a product of one expert, and threads that spin compete with others for the cores. Experts are independent, so
here one thread computes an expert, and threads synchronise once a layer. Measured in
benchmarks/results/2026-11-24-unnamed/threads-and-products-of-few-rows.json.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from weakref import finalize

import torch

from server.kernels.native.library import Kernels

Task = Callable[[], None]

ROWS_LIKE_A_READ = 32  # multiplying this many rows by a matrix takes as long as reading the matrix


def work_bytes(nbytes: float, num_rows: float) -> float:
    """The work of multiplying rows by a matrix of ``nbytes``, expressed in bytes read."""
    return nbytes * (1 + num_rows / ROWS_LIKE_A_READ)


class ComputePool:
    """Runs tasks on several threads, the caller's included. One caller at a time.

    Args:
        num_threads: with 1, ``start`` runs the task itself.
        kernels: native kernels with as many threads; None if torch computes everything.
        triton_device: the device on which Triton runs experts; None if it does not.
    """

    def __init__(self, num_threads: int, kernels: Kernels | None = None, triton_device: torch.device | None = None):
        self.num_threads, self.kernels, self.triton_device = num_threads, kernels, triton_device
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._results: SimpleQueue[Exception | None] = SimpleQueue()
        self._num_started = 0
        for number in range(1, num_threads):
            arguments = (self._tasks, self._results)
            threading.Thread(target=_work, args=arguments, name=f"compute-{number}", daemon=True).start()
        self._stop = finalize(self, _stop, self._tasks, num_threads - 1)

    def start(self, task: Task) -> None:
        """Queue a task, which runs in inference mode with one torch thread."""
        if self.num_threads == 1:
            task()
            return
        self._num_started += 1
        self._tasks.put(task)

    def finish(self) -> None:
        """Run queued tasks too, and return when all are done.

        Raises:
            Exception: the exception of the first failed task; the other tasks are done nevertheless.
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
            del task  # frees what it refers to before the next one comes


def _outcome(task: Task | None) -> Exception | None:
    assert task is not None
    try:
        task()
    except Exception as error:  # noqa: BLE001  finish() raises it
        return error
    return None


def _stop(tasks: SimpleQueue[Task | None], num_threads: int) -> None:
    for _ in range(num_threads):
        tasks.put(None)
