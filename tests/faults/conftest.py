"""Faults are tried on a live server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.engine.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, codec, live, serving_rig

__all__ = ["codec", "live"]


@pytest.fixture(scope="module")
def shared_live(codec: Codec) -> Iterator[FakeServer]:
    """One for all tests of a file, for those that leave nothing behind."""
    with serving_rig(Rig(num_blocks=2048, max_running=64, max_batched_tokens=256, max_queued=256), codec) as server:
        yield server
