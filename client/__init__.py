"""Python client for a Greenroom server."""

from client.adapters import Adapter
from client.async_client import AsyncClient, AsyncStream
from client.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    GreenroomError,
    InvalidReplyError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    ServerUnavailableError,
    StreamClosedError,
    StreamError,
    StreamFailedError,
    StreamInterruptedError,
)
from client.experts import Expert, ExpertChange, ExpertLayer, ExpertMap, Tier
from client.frames import ExpertFrame
from client.generation import (
    ChatReply,
    Choice,
    Completion,
    ExpertUsage,
    Routing,
    Token,
    TokenLogprob,
    ToolCall,
    ToolCallPiece,
    Usage,
)
from client.memory import Memory
from client.metrics import Metrics, Sample
from client.options import RoutingOptions
from client.requests import RequestStatus
from client.server_info import Health, Model
from client.sync_client import Client, Stream
from client.variants import Variant
from client.vectors import Classification, Classifications, Embeddings

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "Adapter",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "ChatReply",
    "Choice",
    "Classification",
    "Classifications",
    "Client",
    "Completion",
    "Embeddings",
    "Expert",
    "ExpertChange",
    "ExpertFrame",
    "ExpertLayer",
    "ExpertMap",
    "ExpertUsage",
    "GreenroomError",
    "Health",
    "InvalidReplyError",
    "Memory",
    "Metrics",
    "Model",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestStatus",
    "Routing",
    "RoutingOptions",
    "Sample",
    "ServerError",
    "ServerUnavailableError",
    "Stream",
    "StreamClosedError",
    "StreamError",
    "StreamFailedError",
    "StreamInterruptedError",
    "Tier",
    "Token",
    "TokenLogprob",
    "ToolCall",
    "ToolCallPiece",
    "Usage",
    "Variant",
]
