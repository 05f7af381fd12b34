"""A checkpoint's image processor: conversations with images to tokens, and what the model's towers take."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from .architecture import find_class, writer_config
from .errors import ModelError
from .prompt_media import PromptMedia
from .template import apply_chat_template
from .tokenizer import ChatTemplateError, check_options

NOT_OF_MEDIA = {"input_ids", "attention_mask"}


class NoImagesError(ModelError):
    """The model takes no images, or its checkpoint has not what it needs for them."""


class MediaProcessor:
    """transformers' processor of a multimodal model, for images alone: video and sound need further packages.

    Raises:
        NoImagesError: the model takes no images, or its processor can't be loaded from the checkpoint's own files.
    """

    def __init__(self, folder: Path):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if "vision_config" not in find_class(writer_config(config)).config_class.sub_configs:
            raise NoImagesError("the model takes no images")
        try:
            self._processor = _load(folder, config)
        except (ValueError, OSError, KeyError, TypeError, ImportError, AttributeError) as error:
            raise NoImagesError(f"the checkpoint's image processor can't be used: {_reason(error, folder)}") from error
        writer = writer_config(config)
        name = "image_token_id" if hasattr(writer, "image_token_id") else "image_token_index"
        self.placeholder: int = getattr(writer, name)  # the token that stands for each piece of an image
        text = config.get_text_config()
        self.sees_whole_images = getattr(text, "use_bidirectional_attention", None) == "vision"
        # Some processors for Pillow make arrays of what they are given, those for torchvision bfloat16.
        self._tensors = "pt" if self._processor.image_processor.backend == "torchvision" else "np"
        self._lock = threading.Lock()  # guards the processor, whose tokenizer can't be used by two threads at once

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[Image.Image],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] = {},
        *,
        add_generation_prompt: bool = True,
    ) -> tuple[list[int], PromptMedia]:
        """A conversation up to the assistant's turn, and its images.

        Args:
            messages: with content in parts, one ``{"type": "image"}`` for each image.
            tools: what the model may call, as OpenAI's API has them.
            options: further variables of the template.
            add_generation_prompt: whether the assistant's turn is begun.

        Raises:
            ChatTemplateError: there is no template, it refuses the messages, or it shows another number of images.
            TemplateOptionError: an option has a name that means something else.
        """
        check_options(options)
        tokenizer = self._processor.tokenizer
        template = getattr(self._processor, "chat_template", None) or tokenizer.chat_template
        if template is None:
            raise ChatTemplateError("the model has no chat template")
        with self._lock:
            try:
                text = apply_chat_template(
                    tokenizer,
                    messages,
                    tools=tools,
                    chat_template=template,
                    add_generation_prompt=add_generation_prompt,
                    **options,
                )
                made = self._processor(
                    text=[text], images=list(images), add_special_tokens=False, return_tensors=self._tensors
                )
                inputs = {  # what a processor leaves as a list is taken as one
                    name: value if isinstance(value, list) else torch.as_tensor(value)
                    for name, value in made.items()
                    if name not in NOT_OF_MEDIA
                }
            except jinja2.TemplateError as error:
                raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from error
            except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
                raise ChatTemplateError(f"the model's processor refuses the images: {_first_line(error)}") from error
        token_ids: list[int] = made["input_ids"][0].tolist()
        return token_ids, PromptMedia(token_ids, inputs, self._wholes(token_ids))

    def _wholes(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Images whose tokens see each other, where the model wants that."""
        if not self.sees_whole_images:
            return []
        wholes, first = [], 0
        for is_image, run in groupby(token_ids, key=lambda token: token == self.placeholder):
            last = first + len(list(run))
            wholes += [(first, last)] if is_image else []
            first = last
        return wholes


def _reason(error: Exception, folder: Path) -> str:
    """In one sentence, without the folder's place on this machine."""
    if "torchvision" in str(error).lower():
        return "it needs torchvision; install greenroom[images]"
    return _first_line(error).replace(str(folder), folder.name)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class _ImagesAlone:
    """Lets a processor be made without what it needs for video and sound."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


def _load(folder: Path, config: PreTrainedConfig) -> Any:
    processor_class = PROCESSOR_MAPPING[type(config)]
    parts = {
        "tokenizer": lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
        "image_processor": lambda: AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, backend="pil"
        ),
    }
    arguments = [parts[name]() if name in parts else None for name in processor_class.get_attributes()]
    of_images = type(processor_class.__name__, (_ImagesAlone, processor_class), {})
    settings, _ = processor_class.get_processor_dict(folder, local_files_only=True)
    return of_images.from_args_and_dict(arguments, settings)  # type: ignore[attr-defined]
