"""Who may ask for what: a dependency of every route that is not open to all, never a matter of its URL.

There are three classes of routes. Operations (``server.api.ops``) are open. Routes of users depend on ``UserDep`` and
are open as long as no API key is set. Routes of administrators depend on ``AdminDep``: they want an admin key, and
without any they answer to this machine alone. An admin key opens the routes of users, too.
"""

from typing import Literal

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from server.api.dependencies import ServiceDep
from server.api.errors import ForbiddenError, InvalidKeyError
from server.api.hosts import host_name, is_loopback, is_own_page, is_this_machine
from server.api.keys import Keys
from server.api.rates import pass_turnstile

KEY_HEADERS = (b"authorization", b"x-api-key")  # the second is what Anthropic's clients send
FORWARDING_HEADERS = ("forwarded", "via", "cf-connecting-ip", "true-client-ip", "x-client-ip", "x-real-ip")

NO_KEY = "No API key was sent: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
WRONG_KEY = "The API key is not one of this server's."
NOT_ADMIN = "This API key opens no administration routes: send an admin key."
ELSEWHERE = (
    "Without an admin key, administration routes answer only to the machine that the server runs on: start it with "
    "--admin-api-key-file."
)


class Guard(SecurityBase):
    """A dependency that lets some in; the same request may pass it twice."""

    def __init__(self, role: Literal["user", "admin"]):
        self.role = role
        self.model, self.scheme_name = HTTPBearer(), "key"  # what /openapi.json says of it

    async def __call__(self, request: Request, service: ServiceDep) -> None:
        """Let the request in.

        Raises:
            InvalidKeyError: it has no key where one is needed, or a wrong one.
            ForbiddenError: it has a key of users where one of administrators is needed, or comes from elsewhere.
            RateLimitError: who sent it asks for more than a user may.

        """
        admitted: set[Guard] = request.scope["state"].setdefault("admitted", set())
        if self in admitted:
            return
        if self.role == "admin":
            _admit_admin(request, service.keys)
        else:
            pass_turnstile(request, service.turnstile, _admit_user(request, service.keys))
        admitted.add(self)


def _admit_user(request: Request, keys: Keys) -> bytes | None:
    """The digest of the key, where one is needed."""
    if not keys.users:
        return None
    sent = _sent_keys(request)
    found = [ring.find(key) for key in sent for ring in (keys.users, keys.admins)]
    digest = next(filter(None, found), None)
    if digest is None:
        raise InvalidKeyError(WRONG_KEY if sent else NO_KEY)
    return digest


def _admit_admin(request: Request, keys: Keys) -> None:
    if not keys.admins:
        if not is_local(request):
            raise ForbiddenError(ELSEWHERE)
        return
    sent = _sent_keys(request)
    is_admin = [keys.admins.find(key) for key in sent]
    is_user = [keys.users.find(key) for key in sent]
    if any(is_admin):
        return
    if any(is_user):
        raise ForbiddenError(NOT_ADMIN)
    raise InvalidKeyError(WRONG_KEY if sent else NO_KEY)


def _sent_keys(request: Request) -> list[bytes]:
    """What was sent as a key, at most one of each header.

    Raises:
        InvalidKeyError: a header is there twice, or says something else than a key.

    """
    keys: list[bytes] = []
    for header in KEY_HEADERS:
        values = [value for name, value in request.scope["headers"] if name == header]
        if len(values) > 1:
            raise InvalidKeyError(f"The header '{header.decode()}' was sent {len(values)} times: send it once.")
        keys += values if header == b"x-api-key" else map(_of_bearer, values)
    return keys


def _of_bearer(value: bytes) -> bytes:
    scheme, _, key = value.partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise InvalidKeyError("The header 'authorization' must be 'Bearer KEY'.")
    return key.strip()


def is_local(request: Request) -> bool:
    """Whether the other end of the socket is on this machine, and asks for it by a name of its own.

    What a header says can only close the door, never open it: a proxy on this machine speaks for others, and so does a
    browser that somebody's page has led here by that page's name.
    """
    client, headers = request.scope["client"], request.headers
    if client is None or any(name in FORWARDING_HEADERS or name.startswith("x-forwarded-") for name in headers):
        return False
    host = headers.get("host", "")
    if "origin" in headers and not is_own_page(headers["origin"], host):  # one that may use the API, and no more
        return False
    return is_loopback(client[0]) and is_this_machine(host_name(host) or "")


UserDep = Depends(Guard("user"))
AdminDep = Depends(Guard("admin"))
