"""What is known of a request when it has ended."""

from dataclasses import dataclass

from server.api.errors import APIError, ClientDisconnectedError, api_error
from server.api.openai.embeddings import Embedding
from server.api.openai.generation import Generation
from server.engine.request import ExpertUsage

Work = Generation | Embedding  # what the engine did for a request


def known_usage(work: Work) -> ExpertUsage | None:
    """What experts cost those of its choices that came to their end; None if none did."""
    return work.expert_usage if work.expert_usage.num_requests else None


@dataclass(frozen=True)
class EndedRequest:
    """A POST, however it ended."""

    id: str
    method: str
    route: str | None  # the path as it is declared; None if there is no such route
    path: str  # quoted
    started_at: float  # by ``time.monotonic``, as is the next
    ended_at: float
    status: int | None  # of the answer, if there is one
    is_stream: bool
    work: Work | None  # None if none was accepted
    answered_error: APIError | None  # that it was answered with

    @property
    def error(self) -> str | None:
        """What went wrong, as OpenAI's errors name it."""
        error = self.answered_error
        if error is None and isinstance(self.work, Generation):
            if self.work.error is not None:
                error = api_error(self.work.error)
            elif None in self.work.finish_reasons:
                error = ClientDisconnectedError("")
        return None if error is None else error.code or error.type
