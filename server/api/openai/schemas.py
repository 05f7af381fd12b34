"""Bodies of the generation requests, in OpenAI's form with vLLM's extra sampling parameters."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from server.api.openai.fields import MAX_INT32, MAX_INT64, Content, Prompts, Stops, Text, TokenIds, only


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationBody(BaseModel):
    """What completions and chat completions share; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    default_max_tokens: ClassVar[int | None] = None  # None is as many as fit

    model: Text | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    n: int = Field(1, ge=1, le=16)
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    # None is what the model wants.
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-MAX_INT64 - 1, le=MAX_INT64)
    stop: Stops = []
    stop_token_ids: TokenIds = []
    ignore_eos: bool = False

    user: Any = None
    priority: Any = None

    echo: Annotated[Any, only(False)] = None
    presence_penalty: Annotated[Any, only(0, 0.0)] = None
    frequency_penalty: Annotated[Any, only(0, 0.0)] = None
    repetition_penalty: Annotated[Any, only(1, 1.0)] = None
    logit_bias: Annotated[Any, only({})] = None
    min_tokens: Annotated[Any, only(0)] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    return_experts: Annotated[Any, only(False)] = None

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, body: object) -> object:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body

    @field_validator("stream_options")
    @classmethod
    def need_stream(cls, options: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if not info.data.get("stream"):
            raise ValueError("is for streams only: set 'stream' to true or leave it out")
        return options

    @property
    def wanted_tokens(self) -> int | None:
        """The limit that was asked for, under its newer name first."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(GenerationBody):
    default_max_tokens: ClassVar[int | None] = 16

    prompt: Prompts
    logprobs: Annotated[Any, only()] = None


class Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    tool_calls: Annotated[Any, only(None, [])] = None

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it; they have no developers."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatBody(GenerationBody):
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    logprobs: Annotated[Any, only(False)] = None
    top_logprobs: Annotated[Any, only(0)] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
