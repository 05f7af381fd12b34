"""A finished request, as the access log and the tracer report it."""

from dataclasses import dataclass

from server.api.core.errors.api_errors import APIError, ClientDisconnectedError, api_error
from server.api.core.requests.embedding import Embedding
from server.api.core.requests.generation import Generation
from server.engine.interface import ExpertUsage

Work = Generation | Embedding  # the work of the engine for a request


def known_usage(work: Work) -> ExpertUsage | None:
    """Return the expert usage of the choices that have ended; None if none has."""
    return work.expert_usage if work.expert_usage.num_requests else None


@dataclass(frozen=True)
class FinishedRequest:
    """A POST that has ended, in whatever way.

    Args:
        route: the path as the route declares it; None if there is no such route.
        path: the requested path, quoted.
        started_at: by ``time.monotonic``, as ``ended_at``.
        status: status code of the response, if there is one.
        work: None if the engine accepted none.
        response_error: the error that was sent instead of a response.

    """

    id: str
    method: str
    route: str | None
    path: str
    started_at: float
    ended_at: float
    status: int | None
    is_stream: bool
    work: Work | None
    response_error: APIError | None

    @property
    def error(self) -> str | None:
        """The code or type of the error, as OpenAI names it; None if the request succeeded."""
        error = self._error
        return None if error is None else error.code or error.type

    @property
    def final_status(self) -> int:
        """The status of the response, or that of the error which ended its stream."""
        if self._error is not None:
            return self._error.status_code
        return ClientDisconnectedError.status_code if self.status is None else self.status

    @property
    def _error(self) -> APIError | None:
        if self.response_error is None and isinstance(self.work, Generation):
            if self.work.error is not None:
                return api_error(self.work.error)
            if None in self.work.finish_reasons:
                return ClientDisconnectedError("")
        return self.response_error
