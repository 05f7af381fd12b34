"""The OpenAPI description that a server has at /openapi.json."""

from __future__ import annotations

import httpx

from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from server.lifecycle.application import application_of
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import serving_rig

DESCRIPTION = application_of(Service("1")).openapi()


def test_the_description_is_served(codec: Codec) -> None:
    with serving_rig(Rig(), codec) as server:
        described = httpx.get(f"http://127.0.0.1:{server.port}/openapi.json").json()
    assert described["paths"] == DESCRIPTION["paths"]


def test_routes_that_may_want_a_key_are_named() -> None:
    paths = DESCRIPTION["paths"].items()
    wanting = {path for path, methods in paths if all("security" in method for method in methods.values())}
    assert {"/v1/models", "/v1/chat/completions", "/v1/experts", "/v1/messages"} <= wanting
    assert not wanting & {"/health", "/ready", "/metrics", "/version"}
