"""Compute threads with native kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels


@pytest.fixture
def pool() -> Iterator[ComputePool]:
    if not availability().runnable:
        pytest.skip("the native kernels were not built")
    kernels = Kernels(2)
    yield ComputePool(2, kernels)
    kernels.close()
