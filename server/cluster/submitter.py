"""Submitter: the way from an ingress to the replicas, as its engine needs it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from server.cluster.wire import Answer, Batch, SharedCall, Submission


class ReplicaLostError(Exception):
    """The replica that got a request has died, or can't be reached."""


class Submitter(Protocol):
    """The way to the replicas."""

    def stream(self, submission: Submission) -> AsyncGenerator[Answer, None]:
        """Send a request to a replica, and yield its items. Closing the generator cancels the request.

        Raises:
            ReplicaLostError: the replica has died.
            EngineError: too many requests wait for a replica.
        """

    def share(self, call: SharedCall) -> AsyncGenerator[Sequence[Batch], None]:
        """Ask a replica for the events of all requests together, and yield its items.

        Nothing comes if the call reached another replica, as no router of Serve's own sends one by name.

        Raises:
            ReplicaLostError: the replica has died.
            EngineError: the call has failed.
        """
