"""Rules for the headers ``Host`` and ``Origin``: the server's names, and the origins of pages that may call it.

A foreign web page can make a browser send requests to a server on the browser's machine or network. Such a request
shows in ``Origin``, or in ``Host`` if the page's own name resolves to the server's address (DNS rebinding).
"""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from server.api.core.errors.api_errors import ForbiddenError, InvalidRequestError
from server.api.core.errors.validation import quote

_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")


def is_loopback(host: str) -> bool:
    """Return True for a loopback address, also for one of IPv4 mapped to IPv6."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def host_name(host: str) -> str | None:
    """Return the name in a header ``Host`` without the port, in lower case; None if the header is malformed."""
    match = _HOST.fullmatch(host)
    return None if match is None else match[1].lower()


def is_this_machine(name: str) -> bool:
    """Return True if a name from ``host_name`` always means the machine that it is used on."""
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name.strip("[]"))


def is_own_page(origin: str, host: str) -> bool:
    """Return True if a page with this origin came from this host and port."""
    return origin.lower().partition("://")[2] == host.lower()


@dataclass(frozen=True)
class HostRules:
    """The hosts and origins that a server accepts. A ``*`` stands for all; names of this machine are always accepted.

    Args:
        is_private: the server listens on a loopback address only, so no other name can mean it.
        allowed: hosts without ports. If there are none, the server accepts every host, unless it is private.
        origins: origins as browsers write them: ``scheme://host:port``.

    """

    is_private: bool = False
    allowed: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def check(self, hosts: list[bytes], origins: list[bytes]) -> None:
        """Refuse a request by its headers ``Host`` and ``Origin``.

        Raises:
            InvalidRequestError: the request does not have exactly one host.
            ForbiddenError: the host or the origin is not accepted.

        """
        host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        name = host_name(host)
        if name is None:
            raise InvalidRequestError("The request must have exactly one header 'host' with the server's name.")
        if not self._allows_host(name):
            raise ForbiddenError(f"The host {quote(name)} is not allowed: start the server with --allowed-host {name}.")
        for origin in origins:
            if len(origins) > 1 or not self._allows_origin(origin.decode("latin-1"), host):
                raise ForbiddenError(
                    f"The origin {quote(origin.decode('latin-1'))} is not allowed: start the server with "
                    "--allow-origin."
                )

    def _allows_host(self, name: str) -> bool:
        if name in self.allowed or "*" in self.allowed or not (self.allowed or self.is_private):
            return True
        return is_this_machine(name)

    def _allows_origin(self, origin: str, host: str) -> bool:
        return is_own_page(origin, host) or origin in self.origins or "*" in self.origins
