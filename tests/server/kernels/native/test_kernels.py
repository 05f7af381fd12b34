"""Threads of the native kernels, and unknown levels."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from server.kernels.native.library import KernelError, Kernels
from tests.server.kernels.native.conftest import FOUND
from tests.server.kernels.native.matrices import MAKERS
from tests.server.kernels.native.test_linear import Call, multiply

CALLS = 300


@pytest.fixture
def busy_neighbours() -> Iterator[None]:
    """Keep a torch thread busy on each core."""
    is_over = threading.Event()
    square = torch.rand((64, 64))

    def compute() -> None:
        while not is_over.is_set():
            torch.mm(square, square)

    threads = [threading.Thread(target=compute) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    yield
    is_over.set()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("busy_neighbours")
def test_short_calls_on_more_threads_than_cores_are_right_on_a_busy_machine(level: str) -> None:
    kernels = Kernels(2 * (os.cpu_count() or 1) + 1, level)
    random = torch.Generator().manual_seed(0)
    weights = MAKERS["float32"](random, 200, 32)
    call = Call(torch.randn((3, 32), generator=random), None, torch.float32, 0, True)
    wanted = multiply(kernels, weights, call)
    assert all(torch.equal(multiply(kernels, weights, call), wanted) for _ in range(CALLS))
    kernels.close()


def test_calls_of_several_threads_run_one_at_a_time(kernels: Kernels) -> None:
    random = torch.Generator().manual_seed(0)
    weights = MAKERS["bfloat16"](random, 200, 64)
    calls = [Call(torch.randn((5, 64), generator=random), None, torch.float32, 0, True) for _ in range(3)]
    wanted = [multiply(kernels, weights, call) for call in calls]
    is_right = [False] * len(calls)

    def work(number: int) -> None:
        results = [multiply(kernels, weights, calls[number]) for _ in range(CALLS // 10)]
        is_right[number] = all(torch.equal(result, wanted[number]) for result in results)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(is_right)


@pytest.mark.skipif(FOUND.reason is not None, reason=f"no native kernels: {FOUND.reason}")
def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(KernelError, match=r"^'sse9' is not a kernel level; choose one of portable, "):
        Kernels(1, "sse9")
