"""Hashes of prompts by block, as routers compare them, and those that a replica probably holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from server.cluster.signatures import RoutedRequest
from server.engine.interface import GenerationRequest

DIGEST_BYTES = 8
MAX_BLOCKS = 512  # of a prompt that are compared


def routed_request(request: GenerationRequest, block_size: int) -> RoutedRequest:
    """Return what a router compares of a request."""
    weights = request.weights
    names = frozenset() if weights is None else frozenset((*weights.factors, *filter(None, (weights.variant,))))
    # Another digest than that of the KV cache's blocks, whose salt has numbers that each replica gives its weights.
    salt = blake2b(request.cache_salt + repr(sorted(names)).encode(), digest_size=DIGEST_BYTES).digest()
    ids = request.prompt_ids if request.media is None else request.media.prefix_cache_ids
    tokens = np.asarray(ids, dtype=np.int64)
    blocks, before = [], salt
    for end in range(block_size, min(len(tokens), MAX_BLOCKS * block_size) + 1, block_size):
        before = blake2b(before + tokens[end - block_size : end].tobytes(), digest_size=DIGEST_BYTES).digest()
        blocks.append(before)
    return RoutedRequest(len(tokens), blocks, names, request.session or None)


class HeldPrefixes:
    """The blocks of prompts that a replica has computed last, as many as its KV cache has room for."""

    def __init__(self, num_blocks: int):
        self._num_blocks = num_blocks
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def note(self, blocks: Iterable[bytes]) -> None:
        """Note the blocks of a prompt that was computed. The first is kept longest: no later one helps without."""
        for block in reversed([*blocks]):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._num_blocks:
            self._blocks.popitem(last=False)

    def newest(self, num_blocks: int) -> frozenset[bytes]:
        """Return so many of the blocks, those used last."""
        blocks = reversed(self._blocks)
        return frozenset(block for block, _ in zip(blocks, range(num_blocks), strict=False))
