"""Errors that refuse or end a request."""

from __future__ import annotations


class EngineError(Exception):
    """Any failure of the engine; the message may be shown to the client."""


class RequestRefusedError(EngineError):
    """The request can never run; ``param`` names the field to change."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class PromptTooLongError(RequestRefusedError):
    """The prompt's text is so long that its tokens can't fit the model's context."""


class UnknownVariantError(RequestRefusedError):
    """There is no expert variant of that name."""


class UnknownAdapterError(RequestRefusedError):
    """There is no adapter of that name."""


class QueueFullError(EngineError):
    """The queue is full; try again later."""


class EngineUnavailableError(EngineError):
    """The engine is stopping or has died."""


class DeadlineExceededError(EngineError):
    """The request's deadline has passed; the text so far was sent."""


class GenerationFailedError(EngineError):
    """An accepted request failed; its stream ends with this error."""
