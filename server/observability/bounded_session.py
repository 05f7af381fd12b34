"""A session of requests whose answers are read with limits, for OpenTelemetry's exporter, which takes no other."""

from __future__ import annotations

import ssl
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import requests
from requests.adapters import BaseAdapter

from server.http_client.bounded_answers import AnswerLimits, bound
from server.redaction import redact

LIMITS = AnswerLimits(body_bytes=64 << 10)


def bounded_session(limits: AnswerLimits = LIMITS) -> requests.Session:
    """Return a session that sends its requests by httpx, with limits of their answers."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(limits))
    return session


class _Adapter(BaseAdapter):
    """Sends requests by httpx. The variables of proxies apply, as httpx reads them."""

    def __init__(self, limits: AnswerLimits):
        super().__init__()
        self._limits = limits
        self._clients: dict[Any, httpx.Client] = {}  # by certificates

    def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
        """Send a request, and read its answer; see requests' ``BaseAdapter``."""
        timeout, verify, cert = options.get("timeout"), options.get("verify", True), options.get("cert")
        if (verify, cert) not in self._clients:
            client = self._clients[verify, cert] = httpx.Client(verify=_tls(verify, cert))
            bound(client, self._limits)
        sent: Any = {"headers": request.headers, "content": request.body}
        found, url = requests.Response(), request.url or ""
        try:
            answer = self._clients[verify, cert].request(request.method or "", url, timeout=timeout, **sent)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            kind = requests.Timeout if isinstance(error, httpx.TimeoutException) else requests.ConnectionError
            reason = redact(str(error)) or type(error).__name__
            raise kind(f"the request to {redact(url)} failed: {reason}", request=request) from error
        found.status_code, found.reason, found.url, found.request = (
            answer.status_code,
            answer.reason_phrase,
            url,
            request,
        )
        found.headers.update(answer.headers)
        found.raw = BytesIO(answer.content)
        return found

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def _tls(verify: bool | str, cert: Any) -> ssl.SSLContext | bool:
    """Return what httpx takes for the certificates of requests: paths of the authorities', and of the client's own."""
    if cert is None and not isinstance(verify, str):
        return verify is not False
    context = httpx.create_ssl_context(verify=verify is not False)
    if isinstance(verify, str):
        is_folder = Path(verify).is_dir()
        context = ssl.create_default_context(cafile=None if is_folder else verify, capath=verify if is_folder else None)
    if cert is not None:
        context.load_cert_chain(*(cert if isinstance(cert, tuple) else (cert,)))
    return context
