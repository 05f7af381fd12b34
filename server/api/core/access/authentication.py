"""Authentication of requests; it never looks at the URL.

There are three classes of routes. Operation routes (``server.api.operations``) are open. User routes are open unless
API keys are set. Admin routes require an admin key; if none is set, they answer only to this machine. An admin key is
also valid for user routes. ``server.api.core.service.guard`` has the dependencies of routes.
"""

import re
from typing import Literal

from fastapi import Request

from server.api.core.access.api_keys import Keys
from server.api.core.access.host_rules import host_name, is_loopback, is_own_page, is_this_machine
from server.api.core.errors.api_errors import ForbiddenError, InvalidKeyError

KEY_HEADERS = (b"authorization", b"x-api-key")  # Anthropic's clients send the second
# Names under which proxies and delivery networks pass on the client's address, or that they add to what they forward.
FORWARDING_HEADERS = re.compile(
    r"forwarded|(^|-)via$|^cdn-loop$|^x-envoy-|^cf-|^x-original-|"
    r"(client|cluster|connecting|origin|originating|proxy|proxyuser|real|remote|socket|source|user|peer)-?"
    r"(ip|ipv6|addr|address)$"
)

NO_KEY = "The request has no API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
WRONG_KEY = "The API key is unknown: send a key of this server."
NOT_ADMIN = "This API key is not valid for admin routes: send an admin key."
ELSEWHERE = (
    "Without an admin key, admin routes answer only to the server's own machine: start the server with "
    "--admin-api-key-file."
)

Role = Literal["user", "admin"]


def admit_user(request: Request, keys: Keys) -> bytes | None:
    """Return the digest of the key; None if no keys are set."""
    if not keys.users:
        return None
    sent = _sent_keys(request)
    found = [ring.find(key) for key in sent for ring in (keys.users, keys.admins)]
    digest = next(filter(None, found), None)
    if digest is None:
        raise InvalidKeyError(WRONG_KEY if sent else NO_KEY)
    return digest


def admit_admin(request: Request, keys: Keys) -> bytes | None:
    """Return the digest of the key; None if no admin keys are set."""
    if not keys.admins:
        if not is_local(request):
            raise ForbiddenError(ELSEWHERE)
        return None
    sent = _sent_keys(request)
    is_admin = [keys.admins.find(key) for key in sent]
    is_user = [keys.users.find(key) for key in sent]
    digest = next(filter(None, is_admin), None)
    if digest is not None:
        return digest
    if any(is_user):
        raise ForbiddenError(NOT_ADMIN)
    raise InvalidKeyError(WRONG_KEY if sent else NO_KEY)


def refusal(request: Request, keys: Keys, role: Role) -> InvalidKeyError | ForbiddenError | None:
    """Return the error with which the routes of a role refuse a request; None if they accept it."""
    try:
        (admit_admin if role == "admin" else admit_user)(request, keys)
    except (InvalidKeyError, ForbiddenError) as error:
        return error
    return None


def is_admin(request: Request, keys: Keys) -> bool:
    """Return True if the caller may use the admin routes."""
    return refusal(request, keys, "admin") is None


def _sent_keys(request: Request) -> list[bytes]:
    """Return the keys that were sent, at most one in each header.

    Raises:
        InvalidKeyError: a header was sent twice, or is malformed.

    """
    keys: list[bytes] = []
    for header in KEY_HEADERS:
        values = [value for name, value in request.scope["headers"] if name == header]
        if len(values) > 1:
            raise InvalidKeyError(f"The header '{header.decode()}' was sent {len(values)} times: send it once.")
        keys += values if header == b"x-api-key" else map(_bearer_key, values)
    return keys


def _bearer_key(value: bytes) -> bytes:
    scheme, _, key = value.partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise InvalidKeyError("The header 'authorization' must be 'Bearer KEY'.")
    return key.strip()


def is_local(request: Request) -> bool:
    """Return True if the client is on this machine, and addresses the server by a name of this machine.

    Headers can only make a request remote, never local: a proxy on this machine forwards requests of others, and a
    browser on this machine may send requests of a foreign page.
    """
    client, headers = request.scope["client"], request.headers
    if client is None or any(map(FORWARDING_HEADERS.search, headers)):
        return False
    host = headers.get("host", "")
    # A foreign origin that --allow-origin lists may call user routes only.
    if "origin" in headers and not is_own_page(headers["origin"], host):
        return False
    return is_loopback(client[0]) and is_this_machine(host_name(host) or "")
