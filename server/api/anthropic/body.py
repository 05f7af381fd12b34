"""Bodies of ``/v1/messages`` and ``/v1/messages/count_tokens``, and their translation to a ``ChatBody``."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.api.anthropic.blocks import ASSISTANT, SYSTEM, USER, add_content
from server.api.anthropic.errors import ThreadError
from server.api.anthropic.tools import ClientTool, ToolChoice, Tools
from server.api.core.bodies.conversation import Conversation
from server.api.core.bodies.fields import MAX_INT32, Stops, Text, only
from server.api.core.bodies.nulls import NullableBody
from server.api.core.bodies.other_samplers import named
from server.api.core.bodies.translation import CONTINUATION, split_extra
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.openai.bodies import THINKING_OPTIONS, ChatBody, TranslatedChat
from server.engine.interface import JsonObject

KINDS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}  # types of blocks by role

NO_TOOLS = "can't be used, because this server runs no tools itself: leave it out"

# The names that fields of a ChatBody have here.
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "chat_template_kwargs": "thinking",
}


class MessagesChat(TranslatedChat):
    """A chat whose ``max_tokens`` is required, so clients often send more than the model's context holds."""

    may_cut_max_tokens: ClassVar[bool] = True


class Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["user", "assistant", "system"]
    content: Any  # a string or a list of blocks


class JsonFormat(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class Thinking(BaseModel):
    """Turns reasoning on or off; a budget has no effect."""

    model_config = ConfigDict(strict=True)

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]

    def for_chat(self) -> JsonObject:
        return {"chat_template_kwargs": dict.fromkeys(THINKING_OPTIONS, self.type != "disabled")}


class OutputConfig(BaseModel):
    model_config = ConfigDict(strict=True)

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class PromptBody(NullableBody, BaseModel):
    """The fields that make the prompt; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Text | None = None
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    system: Any = None  # a string or a list of blocks
    tools: Tools = []
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    cache_control: Any = None  # without effect: all prompts are cached
    thread: Any = None
    compaction: Annotated[
        Any, only(why="can't be used, because this server compacts no conversations: leave it out")
    ] = None
    container: Annotated[Any, only(why=NO_TOOLS)] = None
    mcp_servers: Annotated[Any, only([], why=NO_TOOLS)] = None

    @property
    def unknown_fields(self) -> list[str]:
        return split_extra(self.model_extra)[1]

    def for_chat(self) -> ChatBody:
        """Translate the request to a chat; errors name the fields of a chat. Call it off the event loop.

        Raises:
            InvalidRequestError: the server is asked to keep the conversation, or a content block is invalid.
            ValidationError: the request is not valid as a chat.

        """
        if self.thread is not None:
            raise ThreadError(
                "'thread' can't be used, because this server stores no conversations: send all of it as 'messages'.",
                "thread",
            )
        fields = self._prompt_for_chat() | self._sampling_for_chat()
        return MessagesChat.model_validate(split_extra(self.model_extra)[0] | fields)

    def _prompt_for_chat(self) -> JsonObject:
        messages = self._conversation().messages
        fields: JsonObject = {"model": self.model, "messages": messages}
        if messages and messages[-1]["role"] == "assistant":
            fields |= self._continuation(messages[-1])
        if self.tools:
            fields["tools"] = [tool.for_chat() for tool in self.tools if isinstance(tool, ClientTool)]
        if self.tool_choice is not None:
            fields |= self.tool_choice.for_chat()
        if self.output_config.format is not None:
            schema = {"name": "output", "schema": self.output_config.format.schema_, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.thinking is not None:
            fields |= self.thinking.for_chat()
        effort = self.output_config.effort
        return fields | {"reasoning_effort": "xhigh" if effort == "max" else effort}

    def _sampling_for_chat(self) -> JsonObject:
        return {}

    def _continuation(self, message: JsonObject) -> JsonObject:
        if "tool_calls" in message:
            raise InvalidRequestError("'messages' must not end with a 'tool_use': add its 'tool_result'.", "messages")
        if self.output_config.format is not None:
            raise InvalidRequestError(
                "'output_config.format' can't be used if the last message is the assistant's: leave out one of them.",
                "output_config.format",
            )
        return {**CONTINUATION}

    def _conversation(self) -> Conversation:
        conversation = Conversation()
        if self.system is not None:
            add_content(conversation, "system", self.system, "system", SYSTEM)
        for index, message in enumerate(self.messages):
            place = f"messages[{index}].content"
            add_content(conversation, message.role, message.content, place, KINDS[message.role])
        return conversation


class MessagesBody(PromptBody):
    """A prompt, and the options for its answer."""

    max_tokens: int = Field(ge=1, le=MAX_INT32, validation_alias=named("max_tokens"))
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stop_sequences: Stops = []
    metadata: Any = None
    service_tier: Any = None

    def _sampling_for_chat(self) -> JsonObject:
        return {
            "stream": self.stream,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop_sequences,
        }
