"""The engine, its tokenizer and its experts as the HTTP surface sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from .prompts import ChatPrompt, ChatTraits, GenerationRequest
from .sampling import Grammar, GrammarSpec
from .status import RequestStatus
from .streams import TokenStream


class GenerationEngine(Protocol):
    """The engine as the HTTP surface sees it."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of one sequence, prompt and completion together."""

    @property
    def reads_whole(self) -> bool:
        """Whether the model answers prompts that its encoder reads, instead of continuing them."""

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state; 0 if the model gives none, and so no prompt can be pooled."""

    @property
    def is_alive(self) -> bool:
        """False once the engine thread has died or was stopped."""

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request; call from the event loop.

        Raises:
            RequestRefusedError: the prompt is empty, too long or holds an unknown token id.
            QueueFullError: too many requests wait.
            EngineUnavailableError: the engine is stopping or dead.
        """

    def statuses(self) -> list[RequestStatus]:
        """Of what runs, then of what waits, first to go first; from any thread, without waiting for a step."""

    def halt(self) -> None:
        """Take nothing more, and end every open stream with an error; waits for nothing."""


class TextCodec(Protocol):
    """Text to token ids; may block, so call it off the event loop."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a plain prompt, by default with the special tokens the model expects at its start.

        Raises:
            PromptTooLongError: it can't fit the model.
        """

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[bytes] = (),
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] = {},
        *,
        add_generation_prompt: bool = True,
    ) -> ChatPrompt:
        """A conversation, through the model's chat template, up to the assistant's turn.

        Args:
            messages: in OpenAI's form; arguments of calls are JSON objects.
            images: files, one for each ``{"type": "image"}`` in the messages' contents, in their order.
            tools: what the model may call, in OpenAI's form.
            options: further variables of the template.
            add_generation_prompt: whether the assistant's turn is begun.

        Raises:
            PromptTooLongError: it can't fit the model.
            RequestRefusedError: the model has no chat template, or the template refuses the messages, or has no tools;
                it takes no images, or one can't be read; an option has the name of something else.
        """

    @property
    def chat_traits(self) -> ChatTraits:
        """What the forms of the model's turns are told by; may block the first time."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, also where they are only a part of a character; quick."""

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds to those before it; special tokens are written out."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones written out.

        Raises:
            RequestRefusedError: there is no such token.
        """

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary writes them, which is not always text.

        Raises:
            RequestRefusedError: there is no such token.
        """

    def compile_grammar(self, spec: GrammarSpec) -> Grammar:
        """What ``SamplingParams.grammar`` takes. It may take long; ``server.api.grammars`` bounds and shares it.

        Raises:
            RequestRefusedError: the grammar can't be compiled, or the bytes of the model's tokens can't be told.
        """


ExpertChange = Literal["pin", "unpin", "prefetch", "evict"]
ExpertPlace = tuple[int, int]  # layer and number of an expert
JsonObject = dict[str, Any]


class ExpertAdministration(Protocol):
    """The experts as the HTTP surface sees them, in JSON; every call may block, so make it off the event loop."""

    def overview(self) -> JsonObject:
        """Tiers, totals and every expert of every layer."""

    def find(self, layer: int, expert: int) -> JsonObject | None:
        """One expert; None if the model has no such."""

    def change(self, action: ExpertChange, places: Sequence[ExpertPlace]) -> int:
        """Pin experts and so on; how many were not so already.

        Raises:
            RequestRefusedError: the model has no such expert, it can't be read, or what is left is too little memory.
        """

    def sample(self) -> Any:
        """The state of all experts now, for the next two; opaque."""

    def snapshot(self, sample: Any) -> JsonObject:
        """All of a sample."""

    def update(self, before: Any, sample: Any) -> JsonObject:
        """What is different in a later sample."""
