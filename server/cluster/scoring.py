"""Choice of a replica by what each holds: blocks of the prompt's prefix, weights, and the experts of a signature.

The estimate is in seconds, so that the parts can be compared: a token of the prompt that has to be computed, an adapter
that has to be loaded, experts that have to be read, and requests that are there already. ELDR (arXiv:2607.00466)
routes by signatures of experts, too, with the computation of prompts on machines of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from server.cluster.signatures import RoutedRequest, Signature

NEAR_BEST = 1.1  # estimates within a tenth of the lowest are taken as equal
MAX_CANDIDATES = 32
LEAD = 8  # requests that a replica may have more than twice those of the least loaded candidate


@dataclass(frozen=True)
class Costs:
    """Seconds that a request waits, as replicas measure them.

    Attributes:
        prompt_token: for each token of the prompt that is not in the prefix cache.
        weights: for each adapter or variant that is not loaded.
        stalls: for each token whose experts are all absent.
        request: for each request that runs or waits already.
        completion_tokens: tokens that a request is expected to generate.
    """

    prompt_token: float = 0.001
    weights: float = 0.5
    stalls: float = 0.05
    request: float = 0.05
    completion_tokens: int = 100


@dataclass(frozen=True)
class ReplicaState:
    """State that a replica reported last.

    Attributes:
        num_requests: running and waiting.
        blocks: hashes of the blocks in its prefix cache.
        weights: names of the loaded adapters and variants.
        resident: ``(layers, experts)``, bool; None if it has not told yet.
        number: of this state among all that the replica has told: they come by several ways, not in order.
    """

    num_requests: int = 0
    blocks: frozenset[bytes] = frozenset()
    weights: frozenset[str] = frozenset()
    resident: npt.NDArray[np.bool_] | None = None
    number: int = 0


@dataclass
class _Replica:
    state: ReplicaState
    sent: int = 0  # requests since the state was told, less those that have ended
    expected: set[bytes] = field(default_factory=set)  # blocks of prompts that were sent since
    num_senders: int = 1

    @property
    def num_requests(self) -> int:
        return max(0, self.state.num_requests + self.num_senders * self.sent)

    def prefix_blocks(self, blocks: Sequence[bytes]) -> int:
        """Return how many blocks at the start of a prompt it holds."""
        for number, block in enumerate(blocks):
            if block not in self.state.blocks and block not in self.expected:
                return number
        return len(blocks)

    def overlap(self, signature: Signature) -> float:
        """Return the share of a signature's tokens whose experts are resident."""
        resident = self.state.resident
        if resident is None or resident.shape != signature.shares.shape:
            return 0.0
        total = float(signature.shares.sum())
        return float(signature.shares[resident].sum()) / total if total else 0.0


class Fleet:
    """The replicas, and the order in which a request should try them.

    Args:
        costs: the same for all replicas; they may be replaced.
        block_size: tokens of a block.
        rng: chooses candidates.
        num_senders: routers that send requests, this one included. The others are taken to send as many as this one
            does, until replicas tell what they have got.
        max_candidates: replicas that are compared for one request. With more replicas, those that hold the longest
            prefix or the weights are compared with some random ones.
    """

    def __init__(
        self,
        costs: Costs | None = None,
        block_size: int = 16,
        rng: random.Random | None = None,
        max_candidates: int = MAX_CANDIDATES,
        *,
        num_senders: int = 1,
    ):
        self.num_senders = num_senders
        self.costs = costs or Costs()
        self._block_size = block_size
        self._rng = rng or random.Random()  # noqa: S311  no secret
        self._max_candidates = max_candidates
        self._replicas: dict[str, _Replica] = {}
        self._names: list[str] = []
        self._holders: dict[bytes | str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._replicas)

    def update(self, name: str, state: ReplicaState) -> None:
        """Take what a replica tells; a new one joins. A state that is older than the known one is left out."""
        known = self._replicas.get(name)
        if known is None:
            self._names.append(name)
        elif state.number < known.state.number:
            return
        else:
            self._forget_holder(name, known)
        self._replicas[name] = _Replica(state, num_senders=self.num_senders)
        for key in state.blocks | state.weights:
            self._holders.setdefault(key, set()).add(name)

    def refresh(self, name: str, state: ReplicaState) -> None:
        """Take what a known replica tells without its blocks; it still holds those that it had and got."""
        known = self._replicas.get(name)
        if known is not None:
            self.update(name, replace(state, blocks=known.state.blocks | known.expected))

    def keep(self, names: Iterable[str]) -> None:
        """Forget all replicas but these, and take those that are new."""
        kept = set(names)
        for name in [name for name in self._names if name not in kept]:
            self.remove(name)
        for name in kept.difference(self._replicas):
            self.update(name, ReplicaState())

    def remove(self, name: str) -> None:
        """Forget a replica that has ended."""
        known = self._replicas.pop(name, None)
        if known is not None:
            self._names.remove(name)
            self._forget_holder(name, known)

    def sent(self, name: str, request: RoutedRequest) -> None:
        """Count a request that a replica got, and expect the blocks of its prompt there."""
        replica = self._replicas.get(name)
        if replica is not None:
            replica.sent += 1
            replica.expected.update(request.blocks)
            for block in request.blocks:
                self._holders.setdefault(block, set()).add(name)

    def ended(self, name: str) -> None:
        """Count a request that has ended at a replica."""
        replica = self._replicas.get(name)
        if replica is not None:
            replica.sent -= 1

    def order(self, request: RoutedRequest, signature: Signature | None) -> list[str]:
        """Return the names of the replicas that a request should try, best first; all if there are few.

        Those with nearly the lowest estimate come first, the least loaded ahead. If nothing is known of the request,
        the less loaded of two random ones does. Overloaded replicas come last, whatever they hold.
        """
        candidates = self._candidates(request)
        if not candidates:
            return []
        limit = 2 * min(self._replicas[name].num_requests for name in candidates) + LEAD
        estimates = {name: self._estimate(self._replicas[name], request, signature) for name in candidates}
        if signature is None and not self._is_held(request, candidates):
            first = self._rng.sample(candidates, min(2, len(candidates)))
        else:
            best = min(estimates.values())
            first = [name for name in candidates if estimates[name] <= best * NEAR_BEST]
        is_first = set(first)

        def place(name: str) -> tuple[bool, bool, float, float]:
            requests = self._replicas[name].num_requests
            is_near = name in is_first
            return requests > limit, not is_near, requests if is_near else estimates[name], self._rng.random()

        return sorted(candidates, key=place)

    def _is_held(self, request: RoutedRequest, candidates: Iterable[str]) -> bool:
        """Return True if a candidate holds a part of what a request needs."""
        return any(
            self._replicas[name].prefix_blocks(request.blocks) or request.weights & self._replicas[name].state.weights
            for name in candidates
        )

    def _candidates(self, request: RoutedRequest) -> list[str]:
        if len(self._names) <= self._max_candidates:
            return list(self._names)
        half = self._max_candidates // 2
        chosen: dict[str, None] = {}
        keys: Iterable[bytes | str] = chain(reversed(request.blocks), request.weights)
        for key in keys:
            holders = self._holders.get(key, ())
            for name in sorted(holders, key=lambda name: self._replicas[name].num_requests)[: half - len(chosen)]:
                chosen[name] = None
            if len(chosen) >= half:
                break
        for name in self._rng.sample(self._names, self._max_candidates - len(chosen)):
            chosen[name] = None
        return list(chosen)

    def _estimate(self, replica: _Replica, request: RoutedRequest, signature: Signature | None) -> float:
        """Return the seconds that a request would wait at a replica beyond those that it waits anywhere."""
        costs = self.costs
        new_tokens = request.num_tokens - replica.prefix_blocks(request.blocks) * self._block_size
        seconds = max(0, new_tokens) * costs.prompt_token + replica.num_requests * costs.request
        seconds += len(request.weights - replica.state.weights) * costs.weights
        if signature is not None:
            seconds += (1 - replica.overlap(signature)) * costs.stalls * costs.completion_tokens
        return seconds

    def _forget_holder(self, name: str, replica: _Replica) -> None:
        for key in replica.state.blocks | replica.state.weights | replica.expected:
            holders = self._holders.get(key)
            if holders is not None:
                holders.discard(name)
                if not holders:
                    del self._holders[key]
