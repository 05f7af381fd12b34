"""The salt of a request's blocks."""

from __future__ import annotations

from hashlib import blake2b

from server.engine.interface import GenerationRequest
from server.engine.sequence_weights import SequenceWeights

SALT_BYTES = 32


def block_salt(request: GenerationRequest, weights: SequenceWeights | None) -> bytes:
    """Return a salt that only requests with the same weights and the same ``cache_salt`` have; for neither, none.

    Call it between ``begin`` and ``end`` of the weights.
    """
    parts = (b"" if weights is None else weights.cache_salt, request.cache_salt)
    if not any(parts):
        return b""
    digest = blake2b(digest_size=SALT_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
