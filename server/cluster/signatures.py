"""Expert signatures of requests: which experts the tokens of similar requests went to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_KEYS = 100_000
NEW_SHARE = 0.2  # of the newest request in the signature of an adapter


@dataclass(frozen=True, eq=False)
class Signature:
    """Share of a request's tokens by expert.

    Attributes:
        shares: ``(layers, experts)``, float32; each layer adds up to 1, or to 0 if no token passed it.
    """

    shares: npt.NDArray[np.float32]

    @classmethod
    def from_counts(cls, counts: npt.ArrayLike) -> Signature:
        """Make the signature of a request from its tokens by expert, ``(layers, experts)``."""
        tokens = np.asarray(counts, dtype=np.float32)
        return cls(tokens / np.maximum(tokens.sum(axis=1, keepdims=True), 1))

    def mixed(self, newer: Signature) -> Signature:
        """Return this signature with a part of a newer one."""
        return Signature((1 - NEW_SHARE) * self.shares + np.float32(NEW_SHARE) * newer.shares)


@dataclass(frozen=True)
class RoutedRequest:
    """Facts about a request that the choice of a replica uses.

    Attributes:
        num_tokens: of the prompt.
        blocks: hashes of the complete blocks of the prompt, each of all tokens up to its end.
        weights: names of the adapters and the variant that it needs.
        session: a digest of the conversation, if the client names one.
    """

    num_tokens: int
    blocks: Sequence[bytes] = ()
    weights: frozenset[str] = frozenset()
    session: bytes | None = None


class SignatureMemory:
    """Signatures of ended requests by prefix block, session and adapter; the least recently used are forgotten.

    Args:
        max_keys: number of blocks, sessions and sets of weights to keep.
    """

    def __init__(self, max_keys: int = MAX_KEYS):
        self._max_keys = max_keys
        self._signatures: OrderedDict[Hashable, Signature] = OrderedDict()

    def __len__(self) -> int:
        return len(self._signatures)

    def remember(self, request: RoutedRequest, signature: Signature) -> None:
        """Keep the signature of a request that has ended."""
        for key in _exact_keys(request):
            self._keep(key, signature)
        if request.weights:
            known = self._signatures.get(request.weights)
            self._keep(request.weights, signature if known is None else known.mixed(signature))

    def find(self, request: RoutedRequest) -> Signature | None:
        """Return the signature of the longest known prefix, else that of the session, else that of the adapters."""
        for key in (*_exact_keys(request), request.weights):
            signature = self._signatures.get(key)
            if signature is not None:
                self._signatures.move_to_end(key)
                return signature
        return None

    def _keep(self, key: Hashable, signature: Signature) -> None:
        self._signatures[key] = signature
        self._signatures.move_to_end(key)
        if len(self._signatures) > self._max_keys:
            self._signatures.popitem(last=False)


def _exact_keys(request: RoutedRequest) -> Iterator[Hashable]:
    yield from reversed(request.blocks)
    if request.session is not None:
        yield request.session
