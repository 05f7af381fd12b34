"""A live server for the probes and health checks of ``docker/``."""

from tests.server.live.conftest import codec, live

__all__ = ["codec", "live"]
