"""Faults are tried on a live server."""

from tests.server.live.conftest import codec, live

__all__ = ["codec", "live"]
