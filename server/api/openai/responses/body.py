"""Body of ``/v1/responses``, and its translation to a ``ChatBody``."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.api.core.bodies.conversation import Conversation, text_part
from server.api.core.bodies.fields import Stops, Text, only
from server.api.core.bodies.nulls import NullableBody
from server.api.core.bodies.other_samplers import named
from server.api.core.bodies.translation import CONTINUATION, split_extra
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.openai.bodies import ChatBody, TranslatedChat
from server.api.openai.fields import MAX_LOGPROBS, TokenLimit
from server.api.openai.responses.input_items import add_input, is_unfinished
from server.api.openai.responses.options import (
    Includable,
    Input,
    Metadata,
    ReasoningOptions,
    TextOptions,
)
from server.api.openai.responses.tools import ToolChoice, Tools, choice_for_chat, tools_for_chat
from server.engine.interface import JsonObject

MAX_ID = 256  # characters

# The names that fields of a ChatBody have here.
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


class ResponsesBody(NullableBody, BaseModel):
    """OpenAI's body; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Text | None = None
    input: Input
    instructions: Text | None = None
    stream: bool = False

    max_output_tokens: TokenLimit | None = Field(
        None, validation_alias=named("max_tokens", "max_output_tokens", "max_completion_tokens", "max_tokens")
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions = ReasoningOptions()

    tools: Tools = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True

    stop: Stops = []
    include: list[Includable] = []
    metadata: Metadata = {}
    user: Text | None = None

    store: bool | None = None  # None: if the server stores responses
    previous_response_id: Annotated[Text, Field(min_length=1, max_length=MAX_ID)] | None = None

    # Accepted without effect: the server truncates nothing, and runs no tools.
    truncation: Literal["auto", "disabled"] = "disabled"
    max_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    stream_options: Any = None

    conversation: Annotated[
        Any, only(why="can't be used, because this server stores no conversations: send all of it as 'input'")
    ] = None
    background: Annotated[
        Any, only(False, why="must be false, because this server answers while the client waits: use 'stream' instead")
    ] = False
    prompt: Annotated[Any, only(why="can't be used, because this server stores no prompts: send it as 'input'")] = None

    @property
    def has_logprobs(self) -> bool:
        return "message.output_text.logprobs" in self.include

    @property
    def unknown_fields(self) -> list[str]:
        return split_extra(self.model_extra)[1]

    def for_chat(self, earlier: Sequence[Any] = ()) -> ChatBody:
        """Translate the request to a chat; errors name the fields of a chat. Call it off the event loop.

        Args:
            earlier: the items of the conversation that it continues.

        Raises:
            InvalidRequestError: the server does not take an item of the input.
            ValidationError: the request is not valid as a chat.

        """
        conversation = Conversation()
        if self.instructions is not None:
            conversation.add_content("system", [text_part(self.instructions)])
        add_input(conversation, earlier)
        add_input(conversation, self.input)
        fields = {
            "messages": conversation.messages,
            "model": self.model,
            "stream": self.stream,
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop,
            "user": self.user,
            "response_format": self.text.format.for_chat(),
            "reasoning_effort": self.reasoning.effort,
            "logprobs": self.has_logprobs,
            "top_logprobs": self.top_logprobs if self.has_logprobs else 0,
        }
        if is_unfinished(self.input):
            if "tool_calls" in conversation.messages[-1]:
                raise InvalidRequestError(
                    "'input' must not end with a message to continue after a 'function_call': add its output.", "input"
                )
            fields |= CONTINUATION
        return TranslatedChat.model_validate(fields | self._tools_for_chat() | split_extra(self.model_extra)[0])

    def _tools_for_chat(self) -> JsonObject:
        choice, tools = choice_for_chat(self.tool_choice, self.tools), tools_for_chat(self.tools)
        if self.tools and not tools and choice not in ("auto", "none"):
            raise InvalidRequestError(
                "'tool_choice' asks for a call, but 'tools' holds no function, and this server has no other tools: "
                "send a function, or leave it out.",
                "tool_choice",
            )
        if not tools:
            return {} if choice == "auto" else {"tool_choice": choice}
        return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": self.parallel_tool_calls}
