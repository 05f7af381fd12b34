"""The application in any ASGI server: its lifespan loads a model, and frees it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from server.lifecycle.asgi import create_app
from server.model.errors import ModelError
from server.settings import ServeSettings, SettingsError

SETTINGS = ServeSettings(dtype="float32", threads=1, served_model_name="tiny")
BODY = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}


@pytest.fixture(autouse=True)
def _keep_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is imported already, and other tests need all of it."""
    monkeypatch.setattr("server.lifecycle.asgi.set_up_torch", lambda _: None)


async def state(client: httpx.AsyncClient) -> tuple[int, str]:
    answer = await client.get("/ready")
    return answer.status_code, answer.json()["status"]


@pytest.mark.slow
def test_its_lifespan_loads_the_model_and_frees_it() -> None:
    async def scenario() -> None:
        app = create_app(SETTINGS)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert await state(client) == (503, "loading")
            async with app.router.lifespan_context(app):
                assert await state(client) == (200, "ready")
                answer = await client.post("/v1/completions", json=BODY)
                assert answer.json()["usage"]["completion_tokens"] == 4
                engine = app.state.service.model.engine
            assert await state(client) == (503, "draining")
            assert not engine.is_alive

    asyncio.run(scenario())


def test_a_model_that_can_not_be_loaded_ends_its_lifespan(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = create_app(ServeSettings(response_store=tmp_path / "store"), str(tmp_path))
        with pytest.raises(ModelError):
            async with app.router.lifespan_context(app):
                pass
        with pytest.raises(Exception, match="closed"):
            app.state.service.response_store.find(b"", "resp_1")

    asyncio.run(scenario())


def test_settings_and_the_model_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GREENROOM_MODEL", str(tmp_path / "absent"))

    async def scenario() -> None:
        app = create_app()
        with pytest.raises(ModelError, match="absent"):
            async with app.router.lifespan_context(app):
                pass

    asyncio.run(scenario())
    monkeypatch.setenv("GREENROOM_THREADS", "many")
    with pytest.raises(SettingsError, match="GREENROOM_THREADS 'many'"):
        create_app()
