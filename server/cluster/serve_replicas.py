"""ServeReplicas: the way from an ingress to the replicas of the engine, by a handle of Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from server.cluster.count_keeper import exchange
from server.cluster.kept_counts import Counts
from server.cluster.submitter import ReplicaLostError
from server.cluster.wire import Answer, Batch, Outcome, SharedCall, Submission, outcome_of
from server.engine.interface import EngineUnavailableError, QueueFullError

CALL_SECONDS = 300.0  # longest time of an administrator's call: reading an adapter or a variant takes a while


class ServeReplicas:
    """Replicas behind a handle.

    Args:
        application: the name of Serve's application.
        loop: the event loop of the ingress.
    """

    def __init__(self, handle: DeploymentHandle[Any], application: str, loop: asyncio.AbstractEventLoop):
        self._handle, self._application, self._loop = handle, application, loop
        self._generate = handle.options(method_name="generate", stream=True)
        self._share = handle.options(method_name="share", stream=True)

    async def stream(self, submission: Submission) -> AsyncGenerator[Answer, None]:
        """Send a request to the replica that the router chooses, and yield its items.

        Raises:
            ReplicaLostError: the replica has died.
            QueueFullError: too many requests wait for a replica.
        """
        answers = self._generate.remote(submission)
        is_done = False
        try:
            with _as_ours():
                async for answer in answers:
                    is_done = answer.end is not None
                    yield answer
                is_done = True
        except (QueueFullError, ReplicaLostError):
            is_done = True
            raise
        finally:
            if not is_done:
                answers.cancel()

    async def share(self, call: SharedCall) -> AsyncGenerator[list[Batch], None]:
        """Ask a replica for the events of all requests together, and yield its items.

        Raises:
            ReplicaLostError: the replica has died.
            EngineError: the call has failed.
        """
        items = self._share.remote(call)
        is_done = False
        try:
            with _as_ours():
                async for batches in items:
                    yield batches
                is_done = True
        finally:
            if not is_done:
                items.cancel()

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of any replica."""
        return await getattr(self._handle, method).remote(*arguments)

    async def ask_all(self, method: str, *arguments: Any, seconds: float = CALL_SECONDS) -> list[Any]:
        """Call a method of every replica, and return what it returned or raised at each."""
        response = self._handle.broadcast(method, *arguments)
        async with asyncio.timeout(seconds):
            results: list[Any] = await response.results_async(return_exceptions=True)
        return results

    def call_all(self, method: str, *arguments: Any) -> list[Outcome]:
        """Call a method of every replica, and block until all have answered; off the event loop."""
        calling = asyncio.run_coroutine_threadsafe(self.ask_all(method, *arguments), self._loop)
        return [outcome_of(each) for each in calling.result()]

    def exchange_counts(self, counts: Counts) -> Counts:
        """Give counts of replicas to what keeps them, and return what it has beyond; off the event loop.

        Raises:
            EngineUnavailableError: it does not answer.
        """
        return exchange(self._application, counts)


@contextmanager
def _as_ours() -> Iterator[None]:
    """Raise the errors of Ray as those that an ingress knows."""
    try:
        yield
    except BackPressureError as error:
        raise QueueFullError("too many requests wait for a replica: try again later") from error
    except (ActorDiedError, ActorUnavailableError, AioRpcError) as error:
        raise ReplicaLostError from error
    except RayError as error:
        raise EngineUnavailableError(f"the replica that answered this request failed: {error}") from error
