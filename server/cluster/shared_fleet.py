"""SharedFleet: what this process knows of the replicas. Serve's router runs in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

from server.cluster.scoring import Costs, Fleet, ReplicaState
from server.cluster.signatures import RoutedRequest, Signature, SignatureMemory


class SharedFleet:
    """A ``Fleet`` and the signatures of ended requests, for several threads.

    Attributes:
        by: ``holdings``, ``prefix`` or ``signature``: what replicas are compared by, beside their load and weights.
    """

    def __init__(self) -> None:
        self.by = "holdings"
        self._lock = threading.Lock()
        self._fleet, self._signatures = Fleet(), SignatureMemory()

    def order(self, request: RoutedRequest) -> list[str]:
        """Return the names of the replicas that a request should try, best first."""
        with self._lock:
            signature = None if self.by == "prefix" else self._signatures.find(request)
            return self._fleet.order(replace(request, blocks=()) if self.by == "signature" else request, signature)

    def sent(self, name: str, request: RoutedRequest) -> None:
        """Count a request that a replica got."""
        with self._lock:
            self._fleet.sent(name, request)

    def ended(self, name: str) -> None:
        """Count a request that has ended at a replica without a word of its state."""
        with self._lock:
            self._fleet.ended(name)

    def finished(self, name: str, state: ReplicaState, request: RoutedRequest, signature: Signature | None) -> None:
        """Take what a replica tells at the end of a request."""
        with self._lock:
            self._fleet.refresh(name, state)
            if signature is not None:
                self._signatures.remember(request, signature)

    def share_with(self, num_senders: int) -> None:
        """Expect so many processes to send requests, this one included."""
        with self._lock:
            self._fleet.num_senders = num_senders

    def use_costs(self, costs: Costs) -> None:
        """Compare replicas by other costs from now on."""
        with self._lock:
            self._fleet.costs = costs

    def update(self, name: str, state: ReplicaState) -> None:
        """Take all that a replica tells of itself."""
        with self._lock:
            self._fleet.update(name, state)

    def refresh(self, name: str, state: ReplicaState) -> None:
        """Take what a replica tells of itself without its blocks."""
        with self._lock:
            self._fleet.refresh(name, state)

    def keep(self, names: Iterable[str]) -> None:
        """Forget all replicas but these."""
        with self._lock:
            self._fleet.keep(names)


_fleets: dict[str, SharedFleet] = {}
_lock = threading.Lock()


def shared_fleet(application: str) -> SharedFleet:
    """Return what this process knows of the replicas of an application."""
    with _lock:
        return _fleets.setdefault(application, SharedFleet())
