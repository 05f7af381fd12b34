"""Loads transformers' processor of chats with images from a checkpoint's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from server.model.architecture import find_model_class, text_model_config
from server.model.checkpoint.model_types import load_config
from server.model.errors import ModelError
from server.panics import panics_as_errors


class NoImagesError(ModelError):
    """The model takes no images, or its checkpoint lacks the files that images need."""


class LoadedProcessor(NamedTuple):
    """A processor, and the config of the complete model."""

    processor: Any
    config: PreTrainedConfig


def load_processor(folder: Path) -> LoadedProcessor:
    """Load the processor for images only: video and sound need further packages.

    Raises:
        NoImagesError: the model takes no images, or its processor can't be loaded from the checkpoint's own files.
    """
    config = load_config(folder)
    if "vision_config" not in find_model_class(text_model_config(config)).config_class.sub_configs:
        raise NoImagesError("the model takes no images")
    try:
        with panics_as_errors():
            return LoadedProcessor(_build(folder, config), config)
    except Exception as error:  # transformers' processors check their settings in many ways
        raise NoImagesError(f"the checkpoint's image processor can't be used: {_reason(error, folder)}") from error


class _ImagesOnly:
    """Mixin that lets a processor be built without its parts for video and sound."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


def _build(folder: Path, config: PreTrainedConfig) -> Any:
    processor_class = PROCESSOR_MAPPING[type(config)]
    parts = {
        "tokenizer": lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
        "image_processor": lambda: AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, backend="pil"
        ),
    }
    arguments = [parts[name]() if name in parts else None for name in processor_class.get_attributes()]
    images_only = type(processor_class.__name__, (_ImagesOnly, processor_class), {})
    settings, _ = processor_class.get_processor_dict(folder, local_files_only=True)
    return images_only.from_args_and_dict(arguments, settings)  # type: ignore[attr-defined]


def _reason(error: Exception, folder: Path) -> str:
    """One sentence, without the folder's path on this machine."""
    if "torchvision" in str(error).lower():
        return "it needs torchvision; install greenroom[images]"
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).replace(str(folder), folder.name)
