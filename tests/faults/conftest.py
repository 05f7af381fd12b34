"""Servers for faults: the real engine over the fake model, behind a real uvicorn on a socket."""

from __future__ import annotations

from tests.server.live.conftest import codec, live

__all__ = ["codec", "live"]
