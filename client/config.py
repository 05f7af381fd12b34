"""Connection settings of both clients, without any I/O."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import httpx

from client.calls import RequestSpec
from client.retries import Retries

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 5.0
READ_SECONDS = 600.0  # time until a complete reply, or between the chunks of a stream
# Requests to this machine never use a proxy, whatever the environment variables are.
DIRECT = ("all://127.0.0.1", "all://localhost", "all://[::1]")

Attempts = Generator[httpx.Request | float, Any, httpx.Response]


class ClientOptions(TypedDict, total=False):
    """Keyword arguments of both clients."""

    api_key: str | None
    admin_api_key: str | None
    timeout: httpx.Timeout | float
    retries: Retries


@dataclass(frozen=True)
class ClientConfig:
    """URL and keys of the server, timeouts and retries.

    Args:
        base_url: URL with scheme, without ``/v1``.
        api_key: Key for all routes.
        admin_api_key: Preferred for the routes of experts; also used for all others if there is no ``api_key``.
        timeout: Seconds to connect, and to wait for the next bytes.

    Raises:
        ValueError: If a key cannot be sent in a header.
    """

    base_url: str = DEFAULT_URL
    api_key: str | None = None
    admin_api_key: str | None = None
    timeout: httpx.Timeout | float = field(default_factory=lambda: httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS))
    retries: Retries = field(default_factory=Retries)

    def __post_init__(self) -> None:
        for name, key in (("api_key", self.api_key), ("admin_api_key", self.admin_api_key)):
            if key is not None and not (key.isascii() and key.isprintable() and key == key.strip() != ""):
                raise ValueError(f"{name} is invalid: it must be non-empty printable ASCII without surrounding spaces")

    def http_options(self) -> dict[str, Any]:
        """Return the keyword arguments of the httpx client.

        Raises:
            ValueError: If the URL is invalid.
        """
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise ValueError(f"base_url {self.base_url!r} is not a valid URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"base_url {self.base_url!r} is not a valid URL, such as {DEFAULT_URL}")
        return {"base_url": url, "timeout": self.timeout, "mounts": dict.fromkeys(DIRECT)}

    def attempts(self, http: httpx.Client | httpx.AsyncClient, spec: RequestSpec) -> Attempts:
        """Return the attempts to send a request; see ``Retries.attempts``."""
        query = dict(spec.query) or None
        request = http.build_request(spec.method, spec.path, json=spec.body, params=query, headers=self._headers(spec))
        return self.retries.attempts(request, spec.accepted_statuses)

    def _headers(self, spec: RequestSpec) -> Mapping[str, str]:
        preferred, other = (self.api_key, self.admin_api_key)[:: -1 if spec.is_admin else 1]
        key = other if preferred is None else preferred
        return {} if key is None else {"Authorization": f"Bearer {key}"}
