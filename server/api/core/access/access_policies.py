"""The access policy of each API key."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.engine.interface import ACCESS_REASONS, AccessPolicy, AccessReason

DEFAULT = "default"  # the name of the policy of all other keys, and of requests without a key


@dataclass(frozen=True)
class AccessPolicies:
    """The policies that are in force, an immutable value.

    Args:
        by_name: all policies; the one with the name ``default`` is for keys that have no other.
        names: the name of the policy of each key, by the key's digest.
    """

    by_name: Mapping[str, AccessPolicy] = field(default_factory=dict)
    names: Mapping[bytes, str] = field(default_factory=dict)

    def of(self, key: bytes | None) -> AccessPolicy | None:
        """Return the policy of a key; None if nothing is limited.

        Args:
            key: the digest of the key; None for a request without one.
        """
        return self.by_name.get(DEFAULT if key is None else self.names.get(key, DEFAULT))

    def keys_of(self, name: str) -> set[bytes]:
        """Return the digests of a policy's keys."""
        return {key for key, policy in self.names.items() if policy == name}


class AccessRefusals:
    """Counts of requests that policies refused. Only the event loop counts."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, AccessReason]] = Counter()

    def add(self, policy: str, reason: AccessReason) -> None:
        self._counts[policy, reason] += 1

    def of(self, policies: AccessPolicies) -> list[tuple[tuple[str, str], int]]:
        """Return the counts of the policies in force, by name and reason."""
        return [((name, reason), self._counts[name, reason]) for name in policies.by_name for reason in ACCESS_REASONS]
