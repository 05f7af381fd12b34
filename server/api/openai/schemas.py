"""Bodies of the generation requests, in OpenAI's form with vLLM's extra sampling parameters."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from server.api.openai.content import MAX_IMAGES, MAX_IMAGES_BYTES, Content, ImagePart
from server.api.openai.fields import (
    MAX_INT32,
    MAX_INT64,
    MAX_LOGPROBS,
    LogitBias,
    Prompts,
    Stops,
    Text,
    TokenIds,
    only,
)
from server.api.openai.response_format import ResponseFormat
from server.engine.request import GrammarSpec


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

    echo: bool = False  # before max_tokens, which is checked against it
    n: int = Field(1, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    # None is what the model wants.
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=2)
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    logit_bias: LogitBias = {}
    seed: int | None = Field(None, ge=-MAX_INT64 - 1, le=MAX_INT64)
    stop: Stops = []
    stop_token_ids: TokenIds = []
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=MAX_INT32)

    user: Any = None
    priority: int = Field(0, ge=-MAX_INT32, le=MAX_INT32)
    timeout: float | None = Field(None, gt=0)  # seconds

    response_format: ResponseFormat | None = None
    return_experts: bool = False

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
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are to stand beside each generated one; None without logprobs."""
        return None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same of the prompt's tokens."""
        return None

    @property
    def wanted_tokens(self) -> int | None:
        """The limit that was asked for, under its newer name first."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def grammar_spec(self) -> GrammarSpec | None:
        """What a reply has to follow."""
        return None if self.response_format is None else self.response_format.spec

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(GenerationBody):
    default_max_tokens: ClassVar[int | None] = 16

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, le=MAX_INT32)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @field_validator("max_tokens")
    @classmethod
    def say_something(cls, max_tokens: int, info: ValidationInfo) -> int:
        """Nothing may be generated where the prompt is the answer."""
        if max_tokens == 0 and not info.data.get("echo"):
            raise ValueError("must be above 0, unless 'echo' is true")
        return max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None


class Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    tool_calls: Annotated[Any, only(None, [])] = None

    @property
    def images(self) -> list[ImagePart]:
        """What it shows, in the order of its parts."""
        return [part for part in self.content if isinstance(part, ImagePart)]

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it; they have no developers."""
        content: Any = self.content
        if not isinstance(content, str):
            shown = {"type": "image"}
            content = [{"type": "text", "text": part} if isinstance(part, str) else shown for part in content]
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(GenerationBody):
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    echo: Annotated[Any, only(False)] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None

    @field_validator("messages")
    @classmethod
    def limit_images(cls, messages: list[Message]) -> list[Message]:
        images = [image for message in messages for image in message.images]
        if len(images) > MAX_IMAGES:
            raise ValueError(f"must hold no more than {MAX_IMAGES} images, but holds {len(images)}")
        if sum(len(image.base64) for image in images) > MAX_IMAGES_BYTES:
            raise ValueError(
                f"must hold no more than {MAX_IMAGES_BYTES >> 20} MiB of images together: send smaller ones"
            )
        return messages

    @field_validator("top_logprobs")
    @classmethod
    def need_logprobs(cls, top_logprobs: int, info: ValidationInfo) -> int:
        if top_logprobs and not info.data.get("logprobs"):
            raise ValueError("is for logprobs only: set 'logprobs' to true or leave it out")
        return top_logprobs

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None
