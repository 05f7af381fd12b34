"""HoldingsRouter: Serve's request router that asks the fleet which replica a request should try."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from server.cluster.routing_statistics import state_of
from server.cluster.shared_fleet import SharedFleet, shared_fleet
from server.cluster.signatures import RoutedRequest
from server.cluster.wire import SharedCall

log = logging.getLogger(__name__)


class HoldingsRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Ranks the replicas for each request by what they hold. It keeps no queue in order of arrival.

    Serve would give the choice for one request to the oldest one if it had ``FIFOMixin``.
    """

    _fleet: SharedFleet
    _told: dict[str, Mapping[str, Any]]  # the statistics of each replica that were taken last

    def initialize_state(self, by: str = "holdings", ingresses: int = 1, **_: Any) -> None:
        """Begin without knowledge of the replicas.

        Args:
            by: ``routing`` of the cluster's options.
            ingresses: processes that have a router.
        """
        self._fleet, self._told = shared_fleet(self.app_name), {}
        self._fleet.by = by
        self._fleet.share_with(ingresses)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the running replicas, and the statistics that the controller has got of them."""
        super().update_replicas(replicas)
        self._fleet.keep(replica.replica_id.unique_id for replica in replicas)
        told = {replica.replica_id.unique_id: replica.routing_stats or {} for replica in replicas}
        for name, statistics in told.items():
            if statistics and statistics != self._told.get(name):
                self._fleet.refresh(name, state_of(statistics))
        self._told = told

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return ranks of replicas; each has one. All of them are there, so that a full one is passed over."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # full replicas would cause a hot loop
        try:
            named = _named(candidate_replicas, pending_request.args)
            return [named] if named else self._ranked(candidate_replicas, routed_of(pending_request.args))
        except Exception:  # Serve would only log it, and the request would wait for ever
            log.exception("no choice of a replica; the request takes any")
            return [candidate_replicas]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        del result
        routed = routed_of(pending_request.args)
        if routed is not None:
            self._fleet.sent(replica_id.unique_id, routed)

    def _ranked(self, replicas: Sequence[RunningReplica], request: RoutedRequest | None) -> list[list[RunningReplica]]:
        if request is None:
            return [list(replicas)]
        by_name = {replica.replica_id.unique_id: replica for replica in replicas}
        ranks = [[by_name.pop(name)] for name in self._fleet.order(request) if name in by_name]
        return [*ranks, list(by_name.values())] if by_name else ranks


def _named(replicas: Sequence[RunningReplica], arguments: Sequence[Any]) -> list[RunningReplica]:
    """Return the replica that a call is for, if it is for a certain one and that one runs."""
    name = arguments[0].replica if arguments and isinstance(arguments[0], SharedCall) else None
    return [replica for replica in replicas if replica.replica_id.unique_id == name]


def routed_of(arguments: Sequence[Any]) -> RoutedRequest | None:
    """Return what a call's replica is chosen by; None if any will do."""
    routed = getattr(arguments[0], "routed", None) if arguments else None
    return routed if isinstance(routed, RoutedRequest) else None
