"""Turns chats with images into token ids and vision inputs, by the checkpoint's image processor."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import jinja2
import torch
from PIL import Image

from server.model.architecture import text_model_config
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.prompt_media import PromptMedia
from server.model.text.chat_template import GENERATION_PROMPT, ChatEnd, apply_chat_template
from server.model.text.tokenizer import ChatTemplateError, check_options
from server.panics import panics_as_errors

NOT_OF_MEDIA = {"input_ids", "attention_mask"}


class MediaProcessor:
    """Wraps transformers' processor of a multimodal model, for images only: video and sound need further packages.

    Args:
        chat_template: a template to use instead of the checkpoint's.

    Raises:
        NoImagesError: the model takes no images, or its processor can't be loaded from the checkpoint's own files.
    """

    def __init__(self, checkpoint: Checkpoint, chat_template: str | None = None):
        self._chat_template = chat_template
        self._processor, config = checkpoint.load_processor()
        writer = text_model_config(config)
        name = "image_token_id" if hasattr(writer, "image_token_id") else "image_token_index"
        self.placeholder: int = getattr(writer, name)  # the token that stands for one patch of an image
        text = config.get_text_config()
        self.has_bidirectional_images = getattr(text, "use_bidirectional_attention", None) == "vision"
        # Some Pillow processors turn their inputs into arrays; torchvision ones may return bfloat16, which NumPy lacks.
        self._tensors = "pt" if self._processor.image_processor.backend == "torchvision" else "np"
        self._lock = threading.Lock()  # guards the processor, whose tokenizer can't be used by two threads at once

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the lock, for a copy in another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[Image.Image],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] = {},
        end: ChatEnd = GENERATION_PROMPT,
    ) -> tuple[list[int], PromptMedia]:
        """Encode a conversation with its images, by default up to the assistant's turn.

        Args:
            messages: their content is a list of parts, one ``{"type": "image"}`` for each image.
            tools: tools that the model may call, in the form of OpenAI's API.
            options: further variables of the template.
            end: how the conversation ends.

        Raises:
            ChatTemplateError: there is no template, it refuses the messages, or it renders another number of images.
            TemplateOptionError: an option's name is reserved.
        """
        check_options(options)
        tokenizer = self._processor.tokenizer
        own = getattr(self._processor, "chat_template", None) or tokenizer.chat_template
        template = self._chat_template or own
        if template is None:
            raise ChatTemplateError("the model has no chat template, which images need")
        with self._lock:
            try:
                text = apply_chat_template(
                    tokenizer,
                    messages,
                    tools=tools,
                    chat_template=template,
                    end=end,
                    **options,
                )
                with panics_as_errors():
                    made = self._processor(
                        text=[text], images=list(images), add_special_tokens=False, return_tensors=self._tensors
                    )
                inputs = {  # some processors return lists for some inputs
                    name: value if isinstance(value, list) else torch.as_tensor(value)
                    for name, value in made.items()
                    if name not in NOT_OF_MEDIA
                }
            except jinja2.TemplateError as error:
                raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from error
            except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
                raise ChatTemplateError(f"the model's processor refuses the images: {_first_line(error)}") from error
        token_ids: list[int] = made["input_ids"][0].tolist()
        return token_ids, PromptMedia(token_ids, inputs, self._bidirectional_spans(token_ids))

    def _bidirectional_spans(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """The spans of image tokens, if the model attends in both directions within an image."""
        if not self.has_bidirectional_images:
            return []
        spans, first = [], 0
        for is_image, run in groupby(token_ids, key=lambda token: token == self.placeholder):
            last = first + len(list(run))
            spans += [(first, last)] if is_image else []
            first = last
        return spans


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
