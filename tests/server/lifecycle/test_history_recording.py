"""The history of a server is recorded while it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from expert_store import ExpertStore
from server.administration.store_administration import StoreAdministration
from server.api.core.service.service import Service
from server.engine.engine_statistics import EngineStatistics
from server.engine.interface import JsonObject
from server.lifecycle import history_recording
from server.lifecycle.history_recording import record_history
from tests.expert_store.files import make_catalog
from tests.made_up_memory import made_up_memory


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_recording, "INTERVAL_SECONDS", 0)


@pytest.fixture
def engine() -> EngineStatistics:
    return EngineStatistics()


@pytest.fixture
def experts(tmp_path: Path, engine: EngineStatistics) -> Iterator[StoreAdministration]:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, 8 * catalog.layout(0).slot_bytes)
    yield StoreAdministration("fake", store, engine, made_up_memory())
    store.close()


def test_totals_of_experts_engine_and_responses_are_recorded_until_the_server_drains(
    experts: StoreAdministration, engine: EngineStatistics
) -> None:
    service, numbers = Service("1"), iter(range(4))

    def totals() -> JsonObject:
        number = next(numbers)
        engine.num_running = number
        service.responses.num_errors = number * number
        service.is_draining = number == 3
        return experts.totals()

    asyncio.run(record_history(service, totals))
    series = service.history(0)["series"]
    assert series["num_requests_running"] == [1, 2, 3]
    assert series["num_errors"] == [1, 3, 5]


def test_totals_that_cannot_be_read_end_the_history_with_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def totals() -> JsonObject:
        raise OSError("the store is gone")

    with caplog.at_level(logging.ERROR):
        asyncio.run(record_history(Service("1"), totals))
    assert "history of GET /v1/history is recorded no longer" in caplog.text
    assert "the store is gone" in caplog.text
