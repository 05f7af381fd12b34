"""Native kernels at every level that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.kernels.native.available import availability
from server.kernels.native.library import Kernels

FOUND = availability()
LEVELS = FOUND.runnable or [pytest.param(None, marks=pytest.mark.skip(reason=f"no native kernels: {FOUND.reason}"))]


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def kernels(level: str) -> Iterator[Kernels]:
    made = Kernels(2, level)
    yield made
    made.close()
