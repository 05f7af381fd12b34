"""A live server for the fault tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.engine.text.codec import Codec
from tests.expert_store.late_device import check_order, late_devices
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, codec, live, serving_rig

__all__ = ["check_order", "codec", "late_devices", "live"]


@pytest.fixture(scope="module")
def shared_live(codec: Codec) -> Iterator[FakeServer]:
    """One server for all tests of a file that leave no state behind."""
    with serving_rig(Rig(num_blocks=2048, max_running=64, max_batched_tokens=256, max_queued=256), codec) as server:
        yield server
