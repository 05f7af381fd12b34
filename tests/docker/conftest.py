"""A live server, for what the files under ``docker/`` ask of one."""

from tests.server.live.conftest import codec, live

__all__ = ["codec", "live"]
