"""Addresses that connections may lead to: a server with a public address leads to no private one."""

from __future__ import annotations

import socket
import threading
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

NAT64 = IPv6Network("64:ff9b::/96")  # whose last 32 bits are an address of IPv4


class Reach:
    """Admits the addresses of one place, with all that it redirects to. Thread-safe.

    If the home's address is public, private ones are refused, whatever names lead to them: those of loopback, of the
    local network, and of a cloud's metadata. What the first connection found stays, so that a name can't change sides.

    Args:
        home: name of the host that the user gave; empty for that of the first request.
    """

    def __init__(self, home: str = ""):
        self.home = home
        self._is_public: bool | None = None  # the home's address; None before the first connection
        self._lock = threading.Lock()  # guards the field above

    def admits(self, host: str, address: str) -> bool:
        """Return True if a connection to an address of a host may be used."""
        with self._lock:
            if self._is_public is None:
                addresses = [address] if host == self.home else _addresses(self.home)
                self._is_public = not addresses or any(map(is_public, addresses))
            return not self._is_public or is_public(address)


def is_public(address: str) -> bool:
    """Return True if an IP address is one of the internet, not of a machine or of a private network."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or (IPv4Address(int(found) & 0xFFFFFFFF) if found in NAT64 else found)
    return found.is_global


def _addresses(host: str) -> list[str]:
    try:
        return [str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []
