"""The caller of a request: what it may ask for, and how much of its limit of running requests it uses."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b

from server.api.core.access.rate_limiter import RateLimiter
from server.api.core.errors.api_errors import InvalidRequestError
from server.engine.interface import AccessPolicy

SALT_BYTES = 32
LEAST_PRIORITY = 0  # of users; a lower one would go before all requests of others


def nobody_else() -> bool:
    """Return True, for callers that are no clients."""
    return True


@dataclass
class Caller:
    """The sender of a request.

    Args:
        is_admin: returns whether it is an administrator; called only if a request needs to be one's.
        limiter: counts what the caller has running; None if there are no limits.
        name: of the caller to the limiter.
        id: of the caller in the audit log: the beginning of its key's digest, or a word.
        request_id: of the request.
        policy: of the caller's key; None if nothing is limited.
        salt: digest of its key, if it shares no cached prefixes with others; otherwise empty.
        owner: the owner of the responses that it stores: a digest of its key, or empty.
        session: a digest of its key and of the conversation that it names; empty if it names none.

    """

    is_admin: Callable[[], bool] = nobody_else
    limiter: RateLimiter | None = None
    name: object = None
    id: str = "server"
    request_id: str | None = None
    policy: AccessPolicy | None = None
    salt: bytes = b""
    owner: bytes = b""
    session: bytes = b""
    num_counted: int = 0  # requests and choices that the limiter has counted for this request

    def enter(self) -> dict[str, str]:
        """Count the request, and return response headers with the caller's limit and what is left of it.

        Raises:
            RateLimitError: the caller has to wait.

        """
        if self.limiter is None:
            return {}
        headers = self.limiter.enter(self.name)
        self.num_counted = 1
        return headers

    def count_choices(self, num_choices: int, param: str) -> None:
        """Count each choice of the request as a request that runs.

        Args:
            param: the field to lower if there are too many.

        Raises:
            InvalidRequestError: there are more choices than the caller may ever have running.
            RateLimitError: there are more than the caller may have running now.

        """
        if self.limiter is None:
            return
        most = self.limiter.limits.max_running
        if most is not None and num_choices > most:
            raise InvalidRequestError(
                f"{num_choices} choices are more than the {most} that one key or address may have running: "
                f"lower '{param}', or split the request.",
                param,
            )
        self.num_counted += self.limiter.add(self.name, num_choices - self.num_counted)

    def count_up_to(self, num_wanted: int) -> int:
        """Count at most this many inputs that run at the same time; return how many the limit leaves, at least one."""
        if self.limiter is None:
            return num_wanted
        self.num_counted += self.limiter.add(self.name, num_wanted - self.num_counted, takes_less=True)
        return max(1, self.num_counted)

    def leave(self) -> None:
        """Count the end of the request and its choices; safe to call again."""
        if self.limiter is not None:
            self.limiter.leave(self.name, self.num_counted)
            self.num_counted = 0

    def cache_salt(self, requested: str | None = None) -> bytes:
        """Return the salt of a request's cached prefixes: none, or a digest of the caller's and the requested one."""
        if not self.salt and requested is None:
            return b""
        return blake2b((requested or "").encode(), key=self.salt, digest_size=SALT_BYTES).digest()

    def check_priority(self, priority: int) -> None:
        """Refuse a user's request that would go before those of all others.

        Raises:
            InvalidRequestError: it would.

        """
        if priority < LEAST_PRIORITY and not self.is_admin():
            raise InvalidRequestError(
                f"'priority' is {priority}, but only an administrator may send less than {LEAST_PRIORITY}: "
                f"send {LEAST_PRIORITY} or more, or use an admin key.",
                "priority",
            )


_caller: ContextVar[Caller] = ContextVar("caller")


def set_caller(caller: Caller) -> None:
    """Set the caller of the request that this task answers."""
    _caller.set(caller)


def current_caller() -> Caller:
    """Return the caller of the request that this task answers."""
    found = _caller.get(None)
    return Caller() if found is None else found
