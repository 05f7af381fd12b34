"""The engine's interface: requests, sampling parameters, streams of token events, errors, and protocols. Torch-free.

The HTTP API imports nothing else of the engine.
"""

from server.engine.interface.access_policy import AccessPolicy, ForbiddenExperts
from server.engine.interface.adapter_choice import AdapterCandidate, AdapterExamples, ChoiceByToken
from server.engine.interface.errors import (
    ACCESS_REASONS,
    NO_LABELS,
    NO_TEXT,
    AccessReason,
    AccessRefusedError,
    DeadlineExceededError,
    EngineError,
    EngineUnavailableError,
    GenerationFailedError,
    PromptTooLongError,
    QueueFullError,
    RequestRefusedError,
    RequiredAdapterError,
    UnknownAdapterError,
    UnknownVariantError,
    UnusableAccessPolicyError,
)
from server.engine.interface.event_sinks import EventOutlet, EventSink, SinkItem, publish
from server.engine.interface.events import (
    EVENT_BYTES,
    TEXT_BYTES,
    AdapterShares,
    ExpertUsage,
    FinishReason,
    TokenEvent,
    TokenLogprobs,
    TopLogprobs,
    logprobs_bytes,
)
from server.engine.interface.model_card import ModelCard
from server.engine.interface.prompts import ChatPrompt, ChatTraits, GenerationRequest, Media, Pooling, PoolingOfHidden
from server.engine.interface.protocols import (
    ChangedExperts,
    ExpertAdministration,
    ExpertChange,
    ExpertHealth,
    ExpertPlace,
    GenerationEngine,
    JsonObject,
    TextCodec,
)
from server.engine.interface.request_memory import RequestMemory, RequestMemoryError, Reservation
from server.engine.interface.request_status import RequestState, RequestStatus
from server.engine.interface.request_weights import RequestWeights
from server.engine.interface.sampling_params import (
    Grammar,
    GrammarSpec,
    SamplingDefaults,
    SamplingParams,
    check_sampling,
)
from server.engine.interface.streams import FREE_UNREAD, MAX_UNREAD, EventQueue, TokenStream, merge
from server.engine.interface.timeline import PassTime, Timeline
from server.engine.interface.weights import (
    AdapterAdministration,
    AdapterLoader,
    VariantAdministration,
    WeightsDirectory,
)
from server.model.stalls import Stall
from server.model.step import RoutedExperts

__all__ = [
    "ACCESS_REASONS",
    "EVENT_BYTES",
    "FREE_UNREAD",
    "MAX_UNREAD",
    "NO_LABELS",
    "NO_TEXT",
    "TEXT_BYTES",
    "AccessPolicy",
    "AccessReason",
    "AccessRefusedError",
    "AdapterAdministration",
    "AdapterCandidate",
    "AdapterExamples",
    "AdapterLoader",
    "AdapterShares",
    "ChangedExperts",
    "ChatPrompt",
    "ChatTraits",
    "ChoiceByToken",
    "DeadlineExceededError",
    "EngineError",
    "EngineUnavailableError",
    "EventOutlet",
    "EventQueue",
    "EventSink",
    "ExpertAdministration",
    "ExpertChange",
    "ExpertHealth",
    "ExpertPlace",
    "ExpertUsage",
    "FinishReason",
    "ForbiddenExperts",
    "GenerationEngine",
    "GenerationFailedError",
    "GenerationRequest",
    "Grammar",
    "GrammarSpec",
    "JsonObject",
    "Media",
    "ModelCard",
    "PassTime",
    "Pooling",
    "PoolingOfHidden",
    "PromptTooLongError",
    "QueueFullError",
    "RequestMemory",
    "RequestMemoryError",
    "RequestRefusedError",
    "RequestState",
    "RequestStatus",
    "RequestWeights",
    "RequiredAdapterError",
    "Reservation",
    "RoutedExperts",
    "SamplingDefaults",
    "SamplingParams",
    "SinkItem",
    "Stall",
    "TextCodec",
    "Timeline",
    "TokenEvent",
    "TokenLogprobs",
    "TokenStream",
    "TopLogprobs",
    "UnknownAdapterError",
    "UnknownVariantError",
    "UnusableAccessPolicyError",
    "VariantAdministration",
    "WeightsDirectory",
    "check_sampling",
    "logprobs_bytes",
    "merge",
    "publish",
]
