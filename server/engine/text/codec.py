"""Codec between text and token ids, for the HTTP API."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, Self
from weakref import WeakValueDictionary

from server.engine.image_memory import ImageMemory
from server.engine.interface import (
    ChatPrompt,
    ChatTraits,
    Grammar,
    GrammarSpec,
    Media,
    PromptTooLongError,
    RequestMemory,
    RequestRefusedError,
)
from server.engine.kv.prefix_cache_ids import prefix_cache_ids
from server.engine.sampling.grammar import GrammarCompiler
from server.engine.sampling.lexer_sizes import always
from server.engine.text.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from server.model.encoders.image_inputs import ImageInputs
from server.model.multimodal.image_decoding import PIXEL_BYTES, ImageError, count_pixels, read_image
from server.model.multimodal.image_processor import MediaProcessor
from server.model.text.chat_template import ChatEnd
from server.model.text.tokenizer import ChatTemplateError, TemplateOptionError, TextTooLongError, Tokenizer


class CodecParts(NamedTuple):
    """Parts of a codec, of which another process may make one, too."""

    tokenizer: Tokenizer
    media: MediaProcessor | str
    eos_token_ids: frozenset[int] | None
    template_options: Mapping[str, Any]
    image_inputs: ImageInputs | None


class Codec:
    """A ``TextCodec`` over a tokenizer.

    Args:
        media: the model's image processor, or the reason why there is none.
        eos_token_ids: tokens that end a sequence, by default the tokenizer's.
        memory: the memory that requests hold, images included.
        template_options: variables of the chat template for all requests; those of a request override them.
        image_inputs: turns images into the prompts of an encoder of images; None for any other model.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        media: MediaProcessor | str = "the model takes no images",
        eos_token_ids: frozenset[int] | None = None,
        memory: RequestMemory | None = None,
        template_options: Mapping[str, Any] = {},
        *,
        image_inputs: ImageInputs | None = None,
    ):
        self.parts = CodecParts(tokenizer, media, eos_token_ids, dict(template_options), image_inputs)
        self._image_inputs = image_inputs
        self._tokenizer, self._media = tokenizer, media
        self._template_options = dict(template_options)
        self._image_memory = ImageMemory(memory or RequestMemory())
        self._grammars: GrammarCompiler | None = None
        self._held: WeakValueDictionary[GrammarSpec, Grammar] = WeakValueDictionary()  # compiled and not dropped yet
        if tokenizer.token_bytes is not None:
            # At start-up, because llguidance holds the GIL for half a second for 150,000 tokens.
            ends = tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids
            tokens = tokenizer.token_bytes.vocabulary()
            self._grammars = GrammarCompiler(tokens, tokenizer.special_token_ids, ends)

    @classmethod
    def of(cls, parts: CodecParts, memory: RequestMemory | None = None) -> Self:
        """Make a codec of the parts of another one."""
        return cls(
            parts.tokenizer,
            parts.media,
            parts.eos_token_ids,
            memory,
            parts.template_options,
            image_inputs=parts.image_inputs,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except TextTooLongError as error:
            raise PromptTooLongError(str(error), "prompt") from error

    @property
    def reads_images(self) -> bool:
        return self._image_inputs is not None

    def encode_image(self, content: bytes) -> ChatPrompt:
        if self._image_inputs is None:
            raise RequestRefusedError("this model reads text, not images; send text", "input")
        try:
            decoded_bytes = PIXEL_BYTES * count_pixels([content])
            with self._image_memory.taken(decoded_bytes) as reservation:
                media = self._image_inputs.encode(read_image(content))
                self._image_memory.keep(media, reservation)
        except ImageError as error:
            raise RequestRefusedError(str(error), "input") from error
        return ChatPrompt(media.token_ids, Media(media, tuple(media.token_ids)))

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
        if tools and not self._tokenizer.tool_template.shows_tools:
            raise RequestRefusedError("the model's chat template does not support tools; leave out 'tools'", "tools")
        end = ChatEnd(add_generation_prompt, continue_final_message)
        options = self._template_options | dict(options)
        try:
            if images:
                return self._encode_images(messages, images, tools, options, end)
            return ChatPrompt(self._tokenizer.encode_chat(messages, tools, options, end))
        except TextTooLongError as error:
            raise PromptTooLongError(str(error), "messages") from error
        except TemplateOptionError as error:
            raise RequestRefusedError(str(error), "chat_template_kwargs") from error
        except (ChatTemplateError, ImageError) as error:
            raise RequestRefusedError(str(error), "messages") from error

    def _encode_images(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[bytes],
        tools: Sequence[dict[str, Any]],
        options: Mapping[str, Any],
        end: ChatEnd,
    ) -> ChatPrompt:
        if isinstance(self._media, str):
            raise RequestRefusedError(f"images can't be sent: {self._media}", "messages")
        for message in messages:
            content = message["content"] or ""  # a message that calls tools may have no text
            texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            self._tokenizer.check_length("".join(texts))
        messages = self._tokenizer.tool_template.adapt(messages)
        decoded_bytes = PIXEL_BYTES * count_pixels(images)
        with self._image_memory.taken(decoded_bytes) as reservation:
            token_ids, media = self._media.encode_chat(
                messages,
                [read_image(image) for image in images],
                tools,
                options,
                end,
            )
            self._image_memory.keep(media, reservation, decoded_bytes)
        content = prefix_cache_ids(token_ids, self._media.placeholder, images)
        return ChatPrompt(token_ids, Media(media, content, tuple(media.bidirectional_spans)))

    @cached_property
    def chat_traits(self) -> ChatTraits:
        tokenizer = self._tokenizer
        markers = tokenizer.marker_ids
        special = {text: token_id for text, token_id in markers.items() if token_id in tokenizer.special_token_ids}
        return ChatTraits(
            tokenizer.template,
            markers,
            special,
            takes_tools=tokenizer.tool_template.shows_tools,
            takes_images=not isinstance(self._media, str),
            options=self._template_options,
        )

    def token_bytes(self, token_id: int) -> bytes:
        tokens = self._tokenizer.token_bytes
        if tokens is None:
            return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()
        return tokens.of_token(token_id)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        detokenizer = self.detokenizer((), self._tokenizer.special_token_ids)
        pieces = [detokenizer.push(token_id) for token_id in token_ids]
        return [*pieces[:-1], pieces[-1] + detokenizer.flush()] if pieces else []

    def decode(self, token_ids: Sequence[int]) -> str:
        self._check_known(token_ids)
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        self._check_known(token_ids)
        return self._tokenizer.names(list(token_ids))

    def _check_known(self, token_ids: Sequence[int]) -> None:
        size = len(self._tokenizer)
        unknown = next((token for token in token_ids if token >= size), None)
        if unknown is not None:
            raise RequestRefusedError(f"'tokens' holds token id {unknown}, which is not below {size}", "tokens")

    def compile_grammar(self, spec: GrammarSpec, hold: Callable[[int], bool] = always) -> Grammar:
        if self._grammars is None:
            reason = "the bytes of this model's tokens are unknown, because its tokenizer is of an unsupported kind"
            raise RequestRefusedError(f"'{spec.param}' can't be followed: {reason}", spec.param)
        grammar = self._held[spec] = self._grammars.compile(spec, hold)
        return grammar

    def grammar(self, spec: GrammarSpec) -> Grammar:
        """Return a compiled grammar: at once while somebody holds it, else it is compiled again.

        Raises:
            RequestRefusedError: it can't be compiled.
        """
        return self._held.get(spec) or self.compile_grammar(spec)

    def detokenizer(self, prompt_ids: Sequence[int], written: Collection[int] = ()) -> Detokenizer:
        """Return a detokenizer for the text after a prompt. It omits special tokens, except those in ``written``."""
        tokens = self._tokenizer.token_bytes
        if tokens is not None:
            return ByteDetokenizer(tokens, prompt_ids, written)
        silent = self._tokenizer.special_token_ids.difference(written)
        decode = partial(self._tokenizer.decode, skip_special_tokens=not written)
        return WindowDetokenizer(decode, silent, prompt_ids)
