"""Errors that refuse or end a request."""

from __future__ import annotations

from typing import Literal, Self, get_args

# A model or an adapter that the key may not use, a required adapter that is not loaded, too few experts left.
AccessReason = Literal["model", "adapter", "required_adapter", "experts"]
ACCESS_REASONS: tuple[AccessReason, ...] = get_args(AccessReason)


NO_TEXT = "this model is an encoder, which writes no text; use /v1/embeddings or /v1/classify, or another model"
NO_LABELS = (
    "this model has no labels; serve an encoder that was trained to classify, or the bundled one: "
    "greenroom serve --model-type classify"
)


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


class AccessRefusedError(RequestRefusedError):
    """The policy of the caller's key does not let the request run; ``reason`` is one of ``ACCESS_REASONS``."""

    def __init__(self, message: str, param: str | None, reason: AccessReason):
        super().__init__(message, param)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[str, str | None, AccessReason]]:
        return type(self), (str(self), self.param, self.reason)  # all arguments, as pickle needs them


class QueueFullError(EngineError):
    """The queue is full; try again later."""


class EngineUnavailableError(EngineError):
    """The engine is stopping or has died."""


class RequiredAdapterError(EngineUnavailableError):
    """An adapter that the policy of the caller's key adds to every request is not loaded."""

    reason: AccessReason = "required_adapter"


class UnusableAccessPolicyError(Exception):
    """The model can't run as a policy demands; the message names both."""


class DeadlineExceededError(EngineError):
    """The request's deadline has passed; the text so far was sent."""


class GenerationFailedError(EngineError):
    """An accepted request failed; its stream ends with this error."""
