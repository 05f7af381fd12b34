"""API keys of users and administrators."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

DIGEST = "sha256:"  # begins a digest that is written as text
ID_CHARACTERS = 12


class KeyRing:
    """Keys, kept as digests, so that a comparison takes the same time for every input."""

    def __init__(self, keys: Iterable[str] = ()):
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def has_digest(self, digest: bytes) -> bool:
        """Return True if a key of these has that digest; for operators, since it compares in no constant time."""
        return digest in self._digests

    def find(self, key: bytes) -> bytes | None:
        """Return the digest of ``key`` if it is one of these. It is compared with all, also after a match."""
        sent = sha256(key).digest()
        hits = [hmac.compare_digest(sent, digest) for digest in self._digests]
        return sent if any(hits) else None


@dataclass(frozen=True)
class Keys:
    """The keys for each class of routes; see ``server.api.core.access.authentication``."""

    users: KeyRing = field(default_factory=KeyRing)
    admins: KeyRing = field(default_factory=KeyRing)

    def has_digest(self, digest: bytes) -> bool:
        """Return True if user routes look up the key of a digest; without users' keys they look up none."""
        return bool(self.users) and (self.users.has_digest(digest) or self.admins.has_digest(digest))


def digest_of(key: str) -> str:
    """Return the digest of a key, as a policy file has it."""
    return DIGEST + sha256(key.encode()).hexdigest()


def key_id(digest: bytes) -> str:
    """Return the beginning of a digest, which tells keys apart in the log."""
    return DIGEST + digest.hex()[:ID_CHARACTERS]
