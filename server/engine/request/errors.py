"""What ends a request, or keeps it from beginning."""

from __future__ import annotations


class EngineError(Exception):
    """Any failure of the engine; the message may be shown to the client."""


class RequestRefusedError(EngineError):
    """The request can never run; ``param`` names the field to change."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class PromptTooLongError(RequestRefusedError):
    """The prompt is longer than the model's context, as is plain before it is tokens."""


class QueueFullError(EngineError):
    """As many requests wait as may wait; try again later."""


class EngineUnavailableError(EngineError):
    """The engine is stopping or has died."""


class DeadlineExceededError(EngineError):
    """The request took longer than it may; what it wrote so far was sent."""


class GenerationFailedError(EngineError):
    """An accepted request failed; its stream ends with this."""
