"""A fake server whose model has room for long answers."""

from __future__ import annotations

import pytest

from tests.server.api.fakes import FakeEngine, FakeServer


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer(FakeEngine(max_model_len=4096))
