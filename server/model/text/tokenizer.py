"""A checkpoint's tokenizer and chat template."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from server.model.checkpoint.checkpoint import Checkpoint
from server.model.errors import ModelError
from server.model.text.chat_template import (
    GENERATION_PROMPT,
    ChatEnd,
    apply_chat_template,
    renders_itself,
    shared_renderer,
)
from server.model.text.token_bytes import TokenBytes, decoder_rules, has_regular_expression
from server.model.text.tool_template import ToolTemplate
from server.panics import panics_as_errors

RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
USUAL_CHARACTERS = 8  # at most per token, usually; a longer text is encoded piece by piece to count its tokens
_RESERVED = {"conversations"} | {
    parameter.name
    for function in (PreTrainedTokenizerBase.apply_chat_template, apply_chat_template)
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
}


class ChatTemplateError(ModelError):
    """The model has no chat template, or it refuses the messages."""


class TemplateOptionError(ModelError):
    """An option of a chat template has a reserved name."""


class TextTooLongError(ModelError):
    """The text can't fit the model, however it is split into tokens."""


class Tokenizer:
    """Converts text to token ids and back, with the checkpoint's tokenizer.

    ``token_bytes`` is None if the bytes of a token depend on other tokens.

    Args:
        max_tokens: length of the context; texts that are certainly longer are refused before they are encoded.
        chat_template: a template to use instead of the checkpoint's.

    Raises:
        ModelError: the checkpoint has no tokenizer that transformers can read, or it is one that takes no template.
    """

    def __init__(self, checkpoint: Checkpoint, max_tokens: int | None = None, chat_template: str | None = None):
        try:
            with panics_as_errors():
                self._tokenizer = checkpoint.load_tokenizer()
        except Exception as error:  # the tokenizers library raises plain exceptions
            lines = str(error).strip().splitlines()
            raise ModelError(
                f"{checkpoint.name} has no usable tokenizer: {lines[0] if lines else repr(error)}"
            ) from error
        if has_regular_expression(getattr(self._tokenizer, "backend_tokenizer", None)):
            raise ModelError(
                f"{checkpoint.name} has no usable tokenizer: its decoder replaces by a regular expression, whose time "
                "the server can't bound"
            )
        if chat_template is not None:
            if renders_itself(self._tokenizer):
                raise ModelError(
                    f"the tokenizer of {checkpoint.name} renders chats without a template; leave --chat-template out"
                )
            self._tokenizer.chat_template = chat_template
        end = self._tokenizer.eos_token_id
        self.eos_token_ids: frozenset[int] = frozenset(() if end is None else (end,))
        self.special_token_ids: frozenset[int] = frozenset(
            [*self._tokenizer.all_special_ids]
            + [token_id for token_id, token in self._tokenizer.added_tokens_decoder.items() if token.special]
        )
        self.token_bytes = _token_bytes(self._tokenizer)
        self.tool_template = ToolTemplate(self._render)
        self._max_tokens = max_tokens
        self._longest = max(map(len, self._tokenizer.get_vocab()))  # bytes or characters, which are no more

    def __len__(self) -> int:
        """Return the number of token ids."""
        return len(self._tokenizer)

    @panics_as_errors()
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encode a plain text, by default with the special tokens that the model expects at its start.

        Raises:
            TextTooLongError: the text can't fit the context.
            PanicError: the tokenizers library panicked.
        """
        self.check_length(text)
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def prepare(self) -> None:
        """Start the process that renders chat templates, if the model has a template."""
        if self._tokenizer.chat_template is not None:
            shared_renderer().start()

    @panics_as_errors()
    def check_length(self, text: str) -> None:
        """Refuse a text that is too long before it is encoded, which would hold the interpreter's lock for long.

        Raises:
            TextTooLongError: the text can't fit the context.
        """
        if self._max_tokens is None or len(text) <= self._max_tokens * USUAL_CHARACTERS:
            return
        num_tokens = 0
        if len(text) <= self._max_tokens * self._longest:
            step = self._max_tokens * USUAL_CHARACTERS
            for begin in range(0, len(text), step):
                piece = self._tokenizer.encode(text[begin : begin + step], add_special_tokens=False)
                num_tokens += len(piece) - self._longest  # a cut adds at most as many tokens as a token has characters
                if num_tokens > self._max_tokens:
                    break
            else:
                return
        raise TextTooLongError(
            f"the prompt has {len(text)} characters, which need more than the {self._max_tokens} tokens of the context"
        )

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] = {},
        end: ChatEnd = GENERATION_PROMPT,
    ) -> list[int]:
        """Encode a conversation, by default up to the assistant's turn.

        Args:
            tools: tools that the model may call, in the form of OpenAI's API.
            options: further variables of the template.
            end: how the conversation ends.

        Raises:
            ChatTemplateError: there is no template, or it refuses the messages.
            TemplateOptionError: an option's name is reserved.
            TextTooLongError: the conversation can't fit the context.
        """
        text = self._render(self.tool_template.adapt(messages), tools, options, end)
        return self.encode(text, add_special_tokens=False)

    @property
    def template(self) -> str:
        """The source of the chat template, or of all templates; empty if there is none."""
        source = self._tokenizer.chat_template or ""
        return source if isinstance(source, str) else "\n".join(source.values())

    @property
    def marker_ids(self) -> dict[str, int]:
        """The ids of tokens added to the vocabulary, special or not, by their text."""
        return {token.content: token_id for token_id, token in self._tokenizer.added_tokens_decoder.items()}

    def _render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]],
        options: Mapping[str, Any] = {},
        end: ChatEnd = GENERATION_PROMPT,
    ) -> str:
        if self._tokenizer.chat_template is None:
            raise ChatTemplateError("the model has no chat template; use /v1/completions")
        check_options(options)
        try:
            text = apply_chat_template(self._tokenizer, messages, tools=tools, end=end, **options)
        except RENDER_ERRORS as error:
            raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from error
        return text

    @panics_as_errors()
    def names(self, token_ids: list[int]) -> list[str]:
        """Return tokens in the vocabulary's own spelling."""
        names: list[str] = self._tokenizer.convert_ids_to_tokens(token_ids)
        return names

    @panics_as_errors()
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Decode tokens to text, by default without special tokens.

        Raises:
            PanicError: the tokenizers library panicked.
        """
        text: str = self._tokenizer.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text


def reserved_option(options: Mapping[str, Any]) -> str | None:
    """Return the first name of an option that is more than a variable of the template; None if there is none."""
    return next((name for name in options if name in _RESERVED), None)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options whose names are reserved, since they would be more than variables of the template.

    Raises:
        TemplateOptionError: names the first such option.
    """
    reserved = reserved_option(options)
    if reserved is not None:
        raise TemplateOptionError(
            f"'chat_template_kwargs' must not hold '{reserved}', which the server sets; leave it out"
        )


def _token_bytes(tokenizer: Any) -> TokenBytes | None:
    """The bytes of a tokenizer's tokens; None if it overrides the tokenizers library or has an unknown decoder."""
    kind = type(tokenizer)
    is_plain = isinstance(tokenizer, PreTrainedTokenizerFast) and (
        kind.decode is PreTrainedTokenizerBase.decode and kind._decode is PreTrainedTokenizerFast._decode  # noqa: SLF001
    )
    rules = decoder_rules(tokenizer.backend_tokenizer.decoder) if is_plain else None
    return None if rules is None else TokenBytes(tokenizer.backend_tokenizer, rules)
