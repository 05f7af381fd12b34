"""Which of transformers' classes a config is for, and which part of such a model is the text's.

A multimodal checkpoint has a config for each of its parts. Only its text has experts that are paged and attention that
goes over the KV cache; its towers, which see or hear, are run as transformers runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from .errors import ModelError
from .seam import IMPLEMENTATION

MAPPINGS = (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)
WRITERS = {"qwen3_omni_moe": "thinker_config"}  # where a checkpoint holds several models, the one that writes text


def writer_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the model that writes text, of a checkpoint that may hold others beside it."""
    name = WRITERS.get(config.model_type)
    return getattr(config, name) if name else config


def find_class(config: PreTrainedConfig) -> Any:
    """The class that a checkpoint's config names, or else the first that transformers has for it.

    Raises:
        ModelError: transformers has none that generates as language models do.
    """
    classes = [mapping[type(config)] for mapping in MAPPINGS if type(config) in mapping]
    classes = [found for found in classes if issubclass(found, GenerationMixin)]
    if not classes:
        raise ModelError(f"transformers has no {config.model_type} that writes text token after token")
    return next((found for found in classes if found.__name__ in (config.architectures or ())), classes[0])


def config_of_class(config: PreTrainedConfig, model_class: Any) -> PreTrainedConfig:
    """What a class takes of a config: one that is for the text of a multimodal checkpoint alone takes its text's."""
    is_for_text = model_class.config_class is config.sub_configs.get("text_config")
    return config.get_text_config() if is_for_text else config


def settle_implementations(config: PreTrainedConfig, attention: str | None = IMPLEMENTATION) -> None:
    """Let the text's experts come to us, and its attention go where it is to go.

    Where that is None, and in towers, it is what transformers would choose.
    """
    for part in (config, config.get_text_config()):
        part._attn_implementation = {"": attention}  # noqa: SLF001
        part._experts_implementation = {"": IMPLEMENTATION}  # noqa: SLF001


def text_part(model: PreTrainedModel) -> Any:
    """The part of a model with its layers of experts: everything but its head, and the towers of other media."""
    return model if model.config.is_encoder_decoder else model.get_decoder()


def text_body(model: PreTrainedModel) -> Any:
    """The part whose last hidden states a head would turn into logits; some texts' parts have a head of their own."""
    part = text_part(model)
    return part if part.get_output_embeddings() is None else part.model


def text_modules(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the text's part, and their names in the model."""
    inside = set(text_part(model).modules())
    return ((name, module) for name, module in model.named_modules() if module in inside)
