"""How both clients reach a server; free of I/O."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import httpx

from client.calls import Ask
from client.retries import Retries

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 5.0
WAIT_SECONDS = 600.0  # a whole reply comes when its last token is written; in a stream it is from piece to piece
# A server on this machine is not reached through a proxy, whatever the environment says.
DIRECT = ("all://127.0.0.1", "all://localhost", "all://[::1]")

Exchange = Generator[httpx.Request | float, Any, httpx.Response]


class WireOptions(TypedDict, total=False):
    """What both clients may be told."""

    api_key: str | None
    admin_api_key: str | None
    timeout: httpx.Timeout | float
    retries: Retries


@dataclass(frozen=True)
class Wire:
    """Where the server is, the keys that it wants, and how patient to be.

    Args:
        base_url: with scheme, without ``/v1``.
        api_key: for everything.
        admin_api_key: for experts, instead of the other, and where there is no other.
        timeout: seconds to connect, and to wait for the next bytes.

    Raises:
        ValueError: a key can't be sent.
    """

    base_url: str = DEFAULT_URL
    api_key: str | None = None
    admin_api_key: str | None = None
    timeout: httpx.Timeout | float = field(default_factory=lambda: httpx.Timeout(WAIT_SECONDS, connect=CONNECT_SECONDS))
    retries: Retries = field(default_factory=Retries)

    def __post_init__(self) -> None:
        for name, key in (("api_key", self.api_key), ("admin_api_key", self.admin_api_key)):
            if key is not None and not (key.isascii() and key.isprintable() and key == key.strip() != ""):
                raise ValueError(f"{name} is no key: it must be ASCII without blanks around it, and not be empty")

    def http_options(self) -> dict[str, Any]:
        """For httpx' client.

        Raises:
            ValueError: the URL is none.
        """
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise ValueError(f"base_url {self.base_url!r} is no URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"base_url {self.base_url!r} is no URL like {DEFAULT_URL}")
        return {"base_url": url, "timeout": self.timeout, "mounts": dict.fromkeys(DIRECT)}

    def exchange(self, http: httpx.Client | httpx.AsyncClient, ask: Ask) -> Exchange:
        """Send a request until it is answered, or refused for good; see ``Retries.exchange``."""
        query = dict(ask.query) or None
        request = http.build_request(ask.method, ask.path, json=ask.body, params=query, headers=self._headers(ask))
        return self.retries.exchange(request, ask.answers)

    def _headers(self, ask: Ask) -> Mapping[str, str]:
        preferred, other = (self.api_key, self.admin_api_key)[:: -1 if ask.is_admin else 1]
        key = other if preferred is None else preferred
        return {} if key is None else {"Authorization": f"Bearer {key}"}
