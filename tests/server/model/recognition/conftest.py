"""Fixtures of the tests of recognition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.kernels.compute_pool import ComputePool
from server.kernels.native.library import Kernels


@pytest.fixture
def pool() -> Iterator[ComputePool]:
    kernels = Kernels(2)
    yield ComputePool(2, kernels)
    kernels.close()
