"""Guards: dependencies of routes that authenticate the caller and count it against its limits."""

from functools import partial
from hashlib import blake2b

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from server.api.core.access.api_keys import key_id
from server.api.core.access.authentication import Role, admit_admin, admit_user, is_admin
from server.api.core.access.caller import Caller, set_caller
from server.api.core.access.rate_limiter import caller_address
from server.api.core.service.dependencies import ServiceDep

OWNER, SESSION = b"response store", b"session"
SESSION_HEADER = "X-Session-Id"  # names the conversation of a request, for the choice of a replica in a cluster
LOCAL, NO_KEY_ID = "loopback", "no-key"  # callers in the audit log: an administrator without a key, a user without one


class Guard(SecurityBase):
    """A dependency that refuses requests of other roles."""

    def __init__(self, role: Role):
        self.role = role
        self.model, self.scheme_name = HTTPBearer(), "key"  # for the OpenAPI description

    async def __call__(self, request: Request, service: ServiceDep) -> None:
        """Check the request.

        Raises:
            InvalidKeyError: the key is missing or unknown.
            ForbiddenError: an admin route was requested with a user's key, or from another machine.
            RateLimitError: the caller has reached a rate limit.

        """
        request_id = getattr(request.state, "request_id", None)
        if self.role == "admin":
            key = admit_admin(request, service.keys)
            set_caller(Caller(id=LOCAL if key is None else key_id(key), request_id=request_id))
        else:
            key = admit_user(request, service.keys)
            caller = Caller(
                partial(is_admin, request, service.keys),
                service.rate_limiter if service.rate_limiter.limits else None,
                key or caller_address(request),
                id=NO_KEY_ID if key is None else key_id(key),
                request_id=request_id,
                policy=service.policies.of(key),
            )
            if key is not None:
                caller.owner = blake2b(key, person=OWNER).digest()
            named = request.headers.get(SESSION_HEADER)
            if named:
                caller.session = blake2b((key or b"") + named.encode(), digest_size=8, person=SESSION).digest()
            if service.isolates_prefixes and key is not None:
                caller.salt = key
            request.state.rate_headers = caller.enter()
            request.state.release_rate_limit = caller.leave  # called by RateLimitMiddleware
            set_caller(caller)


UserDep = Depends(Guard("user"))
AdminDep = Depends(Guard("admin"))
