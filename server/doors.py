"""From settings to who may come in."""

from __future__ import annotations

import logging
from importlib.metadata import version

from server.api.hosts import Hosts, is_loopback
from server.api.keys import KeyRing, Keys
from server.api.rates import RateLimits, Turnstile
from server.api.service import Service
from server.settings import ServeSettings, parse_rate

log = logging.getLogger(__name__)


def make_service(settings: ServeSettings, address: str) -> Service:
    """A service without a model yet, with its doors as the settings want them.

    Args:
        address: that the server listens on.

    Raises:
        SettingsError: a file of keys can't be used.
    """
    keys = Keys(KeyRing(settings.user_keys()), KeyRing(settings.admin_keys()))
    is_private = is_loopback(address)
    if not is_private and not keys.users:
        against_rebinding = "" if settings.allowed_host else ", or --allowed-host against DNS rebinding"
        log.warning("everybody who reaches %s may use the API: set --api-key-file%s", address, against_rebinding)
    hosts = Hosts(is_private, frozenset(settings.allowed_host), frozenset(settings.allow_origin))
    return Service(
        version("greenroom"),
        keys=keys,
        hosts=hosts,
        turnstile=Turnstile(_rate_limits(settings)),
        logs_prompts=settings.log_prompts,
    )


def _rate_limits(settings: ServeSettings) -> RateLimits:
    if settings.rate_limit is None:
        return RateLimits(settings.max_requests_per_key)
    return RateLimits(settings.max_requests_per_key, *parse_rate(settings.rate_limit))
