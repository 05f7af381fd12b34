"""Protocols of the engine, its tokenizer and its experts, for the HTTP API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from server.engine.interface.prompts import ChatPrompt, ChatTraits, GenerationRequest
from server.engine.interface.request_status import RequestStatus
from server.engine.interface.sampling_params import Grammar, GrammarSpec
from server.engine.interface.streams import TokenStream


class GenerationEngine(Protocol):
    """An engine that continues prompts."""

    @property
    def max_model_len(self) -> int:
        """Maximum tokens of one sequence, prompt and completion together."""

    @property
    def is_encoder_decoder(self) -> bool:
        """True if the model's encoder reads prompts and its decoder answers them, instead of continuing them."""

    @property
    def is_encoder(self) -> bool:
        """True if the model reads whole prompts and writes no text."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the model's labels; none if it does not classify."""

    @property
    def hidden_size(self) -> int:
        """Size of a hidden state; 0 if the model gives none, so that no prompt can be pooled."""

    @property
    def is_alive(self) -> bool:
        """False once the engine's thread has died or was stopped."""

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request; call from the event loop.

        Raises:
            RequestRefusedError: the prompt is empty, too long or holds an unknown token id.
            QueueFullError: too many requests wait.
            EngineUnavailableError: the engine is stopping or dead.
        """

    def statuses(self) -> list[RequestStatus]:
        """Return the status of running, then of waiting requests, in scheduling order; from any thread, at once."""

    def reset_prefix_cache(self) -> None:
        """Let requests that are submitted from now on reuse no KV cache of earlier ones. It may block.

        Raises:
            EngineError: it can't be reset.
        """

    def halt(self) -> None:
        """Accept no more requests and end every open stream with an error, without waiting."""


class TextCodec(Protocol):
    """Converts between text and token ids. Its methods may block, so call them off the event loop."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenise a plain prompt, by default with the special tokens that the model expects at its start.

        Raises:
            PromptTooLongError: the text can't fit the model's context.
        """

    @property
    def reads_images(self) -> bool:
        """True if prompts are images alone (``encode_image``)."""

    def encode_image(self, content: bytes) -> ChatPrompt:
        """Turn an image file into a prompt of an encoder of images.

        Raises:
            RequestRefusedError: the model takes no such prompts, or the file can't be read.
        """

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[bytes] = (),
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] = {},
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> ChatPrompt:
        """Render a conversation with the model's chat template and tokenise it.

        Args:
            messages: in OpenAI's form, but with arguments of tool calls as JSON objects.
            images: image files, one for each ``{"type": "image"}`` in the messages' contents, in their order.
            tools: tools that the model may call, in OpenAI's form.
            options: additional variables of the template.
            add_generation_prompt: begin the assistant's turn.
            continue_final_message: end the prompt with the text of the last message instead of beginning a turn.

        Raises:
            PromptTooLongError: the conversation can't fit the model's context.
            RequestRefusedError: there is no chat template, or it refuses the messages, supports no tools or reserves
                the name of an option; the model takes no images, or an image can't be read.
        """

    @property
    def chat_traits(self) -> ChatTraits:
        """Traits of the model's chat format; may block the first time."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, even if they are only part of a character; fast."""

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds to those before it; special tokens are written out."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens; special tokens are written out.

        Raises:
            RequestRefusedError: there is no such token.
        """

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        """Return tokens as the vocabulary writes them, which is not always text.

        Raises:
            RequestRefusedError: there is no such token.
        """

    def compile_grammar(self, spec: GrammarSpec, hold: Callable[[int], bool] = ...) -> Grammar:
        """Compile a grammar. The engine finds it by ``SamplingParams.grammar`` for as long as it is held.

        It may take long; ``server.api.core.grammars.compiler`` bounds the time and shares the result.

        Args:
            hold: takes so many bytes for as long as the grammar exists, if more than usual are needed; False without
                them. Any thread may call it. By default there is memory.

        Raises:
            RequestRefusedError: the grammar can't be compiled, or the bytes of the model's tokens are unknown.
        """


ExpertChange = Literal["pin", "unpin", "prefetch", "evict"]
ExpertPlace = tuple[int, int]  # layer, and number of the expert in it
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class ChangedExperts:
    """Outcome of a change: the number of experts that changed, and those that an eviction left, by reason."""

    num_changed: int
    unchanged: Mapping[str, Sequence[ExpertPlace]] | None = None  # None for other changes than an eviction


# failing: experts can't be read, and only a restart helps; files_changed: the checkpoint was written to
ExpertHealth = Literal["ok", "files_changed", "failing"]


class ExpertAdministration(Protocol):
    """Views and changes of the experts, in JSON. Every call may block, so make it off the event loop."""

    def overview(self) -> JsonObject:
        """Return tiers, totals and every expert of every layer."""

    def find(self, layer: int, expert: int) -> JsonObject | None:
        """Return one expert, or None if the model does not have it."""

    def change(self, action: ExpertChange, places: Sequence[ExpertPlace]) -> ChangedExperts:
        """Pin, unpin, prefetch or evict experts.

        Raises:
            RequestRefusedError: the model has no such expert, it can't be read, or too few slots would stay unpinned.
        """

    def sample(self) -> Any:
        """Return the current state of all experts, for ``snapshot`` and ``update``; opaque."""

    def snapshot(self, sample: Any) -> JsonObject:
        """Return a complete sample."""

    def update(self, before: Any, sample: Any) -> JsonObject:
        """Return the differences of a later sample."""
