"""Builds the HTTP service from the settings: API keys, allowed hosts and origins, rate limits."""

from __future__ import annotations

import logging
from importlib.metadata import version

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.access.host_rules import HostRules, is_loopback
from server.api.core.access.rate_limiter import RateLimiter, RateLimits
from server.api.core.replies.response_store import ResponseStore, UnusableStoreError
from server.api.core.service.service import Service
from server.lifecycle.reload_hooks import ReloadHooks
from server.settings import ServeSettings, SettingsError

STORE_BYTES = 1 << 30  # of kept responses, by default
MIN_STORE_BYTES = 64 << 20  # a request and its response have less
DAY_SECONDS = 86_400.0

log = logging.getLogger(__name__)


def make_service(settings: ServeSettings, address: str) -> Service:
    """Make a service that has no model yet, with the access rules of the settings.

    Args:
        address: address on which the server listens.

    Raises:
        SettingsError: a key file or the store of responses can't be used.
    """
    keys = read_keys(settings)
    is_private = is_loopback(address)
    if not is_private and not keys.users:
        against_rebinding = "" if settings.allowed_host else ", or --allowed-host to prevent DNS rebinding"
        log.warning("anyone who can reach %s may use the API; set --api-key-file%s", address, against_rebinding)
    hosts = HostRules(is_private, frozenset(settings.allowed_host), frozenset(settings.allow_origin))
    return Service(
        version("greenroom"),
        aliases=settings.model_alias,
        keys=keys,
        host_rules=hosts,
        rate_limiter=RateLimiter(_rate_limits(settings)),
        isolates_prefixes=settings.prefix_cache_isolation,
        logs_prompts=settings.log_prompts,
        refuses_other_samplers=settings.strict_sampling,
        stream_keep_alive_seconds=settings.stream_keep_alive,
        response_store=open_response_store(settings),
    )


def open_response_store(settings: ServeSettings) -> ResponseStore | None:
    """Open the store of responses, if the settings name one.

    Raises:
        SettingsError: it can't be opened.
    """
    if settings.response_store is None:
        return None
    max_bytes = settings.response_store_size.resolve(0, STORE_BYTES)
    if max_bytes < MIN_STORE_BYTES:
        raise SettingsError(
            f"--response-store-size {settings.response_store_size} is too little for one long conversation: "
            f"set {MIN_STORE_BYTES >> 20}MiB or more"
        )
    try:
        return ResponseStore(settings.response_store, max_bytes, settings.response_store_days * DAY_SECONDS)
    except UnusableStoreError as error:
        raise SettingsError(f"--response-store {error}") from error


def read_keys(settings: ServeSettings) -> Keys:
    """Return the keys of the settings and of the key files as they are now.

    Raises:
        SettingsError: a key file can't be used.
    """
    return Keys(KeyRing(settings.user_keys()), KeyRing(settings.admin_keys()))


def add_key_files(hooks: ReloadHooks, service: Service, settings: ServeSettings) -> None:
    """Let the hooks read the key files again, if there are any."""

    def reload(_: str) -> str:
        service.keys = keys = read_keys(settings)
        return f"{len(keys.users)} for the API, {len(keys.admins)} for administration"

    if settings.api_key_file is not None or settings.admin_api_key_file is not None:
        hooks.add("keys", reload)


def _rate_limits(settings: ServeSettings) -> RateLimits:
    if settings.rate_limit is None:
        return RateLimits(settings.max_requests_per_key)
    return RateLimits(settings.max_requests_per_key, settings.rate_limit.num_requests, settings.rate_limit.seconds)
