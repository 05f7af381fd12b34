"""Which names the server goes by, and from which pages browsers may ask it.

A browser can be led to send what a page of somebody else wants to a server on its own machine or network. The page may
say so (``Origin``), or have its own name point there (DNS rebinding), which shows in ``Host``.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import APIError, ForbiddenError, InvalidRequestError
from server.api.validation import quote

_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")


def is_loopback(host: str) -> bool:
    """Of an address, also one of IPv4 within IPv6."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def host_name(host: str) -> str | None:
    """The name in a header ``Host``, without its port, in lower case; None if it is none."""
    match = _HOST.fullmatch(host)
    return None if match is None else match[1].lower()


def is_this_machine(name: str) -> bool:
    """Whether a name as of ``host_name`` can mean nothing but the machine that it is used on."""
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name.strip("[]"))


def is_own_page(origin: str, host: str) -> bool:
    """Whether a page with this origin came from the server that it calls by this host and port."""
    return origin.lower().partition("://")[2] == host.lower()


@dataclass(frozen=True)
class Hosts:
    """What a server takes for its own name, and for a friend's page.

    Names of this machine are always among the hosts. A ``*`` stands for all.
    """

    is_private: bool = False  # it listens on this machine alone, so that no other name can be meant
    allowed: frozenset[str] = frozenset()  # without ports; if there are none, any will do unless it is private
    origins: frozenset[str] = frozenset()  # as browsers write them: scheme://host:port

    def check(self, hosts: list[bytes], origins: list[bytes]) -> None:
        """Refuse a request by its headers ``Host`` and ``Origin``.

        Raises:
            InvalidRequestError: it has not exactly one host.
            ForbiddenError: it means another server, or comes from a page that may not ask.

        """
        host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        name = host_name(host)
        if name is None:
            raise InvalidRequestError("The request must have one header 'host', which is the server's name.")
        if not self._is_ours(name):
            raise ForbiddenError(
                f"This server does not go by the name {quote(name)}: start it with --allowed-host {name}."
            )
        for origin in origins:
            if len(origins) > 1 or not self._is_friend(origin.decode("latin-1"), host):
                raise ForbiddenError(
                    f"Pages of {quote(origin.decode('latin-1'))} may not ask this server: start it with --allow-origin."
                )

    def _is_ours(self, name: str) -> bool:
        if name in self.allowed or "*" in self.allowed or not (self.allowed or self.is_private):
            return True
        return is_this_machine(name)

    def _is_friend(self, origin: str, host: str) -> bool:
        return is_own_page(origin, host) or origin in self.origins or "*" in self.origins


class HostMiddleware:
    """Turns away what ``Hosts`` refuse, whatever it asks for."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            origins = [value for name, value in scope["headers"] if name == b"origin"]
            try:
                self.hosts.check(hosts, origins)
            except APIError as error:
                await JSONResponse(error.body, error.status_code, error.headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)
