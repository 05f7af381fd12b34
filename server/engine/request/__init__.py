"""What the engine takes and gives: requests, sampling parameters, streams of token events, and its errors.

The HTTP surface knows the engine by this package alone.
"""

from server.model.stalls import Stall

from .doors import (
    ExpertAdministration,
    ExpertChange,
    ExpertPlace,
    GenerationEngine,
    JsonObject,
    TextCodec,
)
from .errors import (
    DeadlineExceededError,
    EngineError,
    EngineUnavailableError,
    GenerationFailedError,
    PromptTooLongError,
    QueueFullError,
    RequestRefusedError,
)
from .events import (
    Chosen,
    ExpertUsage,
    FinishReason,
    TokenEvent,
    TokenLogprobs,
)
from .prompts import (
    ChatPrompt,
    ChatTraits,
    GenerationRequest,
    Media,
    Pooling,
)
from .sampling import (
    Grammar,
    GrammarSpec,
    SamplingDefaults,
    SamplingParams,
    check_sampling,
)
from .status import RequestState, RequestStatus
from .streams import (
    MAX_UNREAD,
    EventQueue,
    TokenStream,
    merge,
    publish,
)
from .timeline import Timeline

__all__ = [
    "MAX_UNREAD",
    "ChatPrompt",
    "ChatTraits",
    "Chosen",
    "DeadlineExceededError",
    "EngineError",
    "EngineUnavailableError",
    "EventQueue",
    "ExpertAdministration",
    "ExpertChange",
    "ExpertPlace",
    "ExpertUsage",
    "FinishReason",
    "GenerationEngine",
    "GenerationFailedError",
    "GenerationRequest",
    "Grammar",
    "GrammarSpec",
    "JsonObject",
    "Media",
    "Pooling",
    "PromptTooLongError",
    "QueueFullError",
    "RequestRefusedError",
    "RequestState",
    "RequestStatus",
    "SamplingDefaults",
    "SamplingParams",
    "Stall",
    "TextCodec",
    "Timeline",
    "TokenEvent",
    "TokenLogprobs",
    "TokenStream",
    "check_sampling",
    "merge",
    "publish",
]
