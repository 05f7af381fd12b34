"""Keeps the policies of a service as their file says, with a line of the audit log for each change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from server.api.core.access.access_policies import AccessPolicies
from server.api.core.access.api_keys import Keys, key_id
from server.api.core.access.audit import audit
from server.api.core.service.service import Service
from server.engine.interface import AccessPolicy, ForbiddenExperts, UnusableAccessPolicyError
from server.lifecycle.access_policy_file import EVERYWHERE, read_policies
from server.lifecycle.reload_hooks import ReloadHooks
from server.settings import ServeSettings, SettingsError

Prepare = Callable[[Iterable[AccessPolicy]], None]

log = logging.getLogger(__name__)


class AccessPolicySetup:
    """Reads the policy file at the start and at each reload. A file that can't be used changes nothing.

    Raises:
        SettingsError: the file can't be used.
    """

    def __init__(self, file: Path, service: Service, hooks: ReloadHooks):
        self._file, self._service = file, service
        self._lock = threading.Lock()  # held while policies change
        self._prepare: Prepare | None = None  # known once the model is loaded
        self._put(read_policies(file), "start")
        hooks.add("policies", self._reload)

    def use_model(self, prepare: Prepare) -> None:
        """Check the policies against the model that was loaded, and from now on those of each reload. May block.

        Raises:
            SettingsError: the model can't run as a policy demands.
        """
        with self._lock:
            self._prepare = prepare
            self._check(self._service.policies)

    def _reload(self, reason: str) -> str:
        with self._lock:
            try:
                policies = read_policies(self._file)
                self._check(policies)
            except SettingsError as error:
                audit("policy.reload", "failed", who=reason, error=str(error))
                raise
            num_changed = self._put(policies, reason)
        return f"{len(policies.by_name)} in force, {num_changed} changed"

    def _check(self, policies: AccessPolicies) -> None:
        if self._prepare is None:
            return
        try:
            self._prepare(policies.by_name.values())
        except UnusableAccessPolicyError as error:
            raise SettingsError(f"--policy-file {self._file}: {error}") from error

    def _put(self, policies: AccessPolicies, who: str) -> int:
        """Put policies in force, and return how many have changed."""
        before, self._service.policies = self._service.policies, policies
        changes = list(_changes(before, policies))
        for action, fields in changes:
            audit(action, who=who, **fields)
        for name, number in _unknown_keys(policies, self._service.keys):
            log.warning("keys of the policy %s that this server does not know: %d", name, number)
        return len(changes)


def add_policies(settings: ServeSettings, service: Service, hooks: ReloadHooks) -> AccessPolicySetup | None:
    """Put the policies of ``--policy-file`` in force, and let the hooks read it again; None without the setting.

    Raises:
        SettingsError: the file can't be used.
    """
    return None if settings.policy_file is None else AccessPolicySetup(settings.policy_file, service, hooks)


def _changes(before: AccessPolicies, after: AccessPolicies) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield the action and the fields of the audit line of each policy that has changed."""
    for name in dict.fromkeys([*before.by_name, *after.by_name]):
        old, new = _described(before, name), _described(after, name)
        if name not in after.by_name:
            yield "policy.remove", {"policy": name}
        elif name not in before.by_name:
            yield "policy.add", {"policy": name, **new}
        elif old != new:
            yield "policy.change", {"policy": name, **{each: new[each] for each in new if new[each] != old[each]}}


def _described(policies: AccessPolicies, name: str) -> dict[str, Any]:
    policy = policies.by_name.get(name)
    if policy is None:
        return {}
    return {
        "keys": sorted(map(key_id, policies.keys_of(name))),
        "models": "all" if policy.models is None else list(policy.models),
        "adapters": dict(policy.adapters),
        "forbidden_experts": _numbers(policy.forbidden_experts),
    }


def _numbers(forbidden: ForbiddenExperts) -> dict[str, list[int]]:
    by_layer = {str(layer): sorted(experts) for layer, experts in forbidden.by_layer}
    return by_layer | ({EVERYWHERE: sorted(forbidden.everywhere)} if forbidden.everywhere else {})


def _unknown_keys(policies: AccessPolicies, keys: Keys) -> Iterable[tuple[str, int]]:
    for name in policies.by_name:
        unknown = [key for key in policies.keys_of(name) if not keys.has_digest(key)]
        if unknown:
            yield name, len(unknown)
