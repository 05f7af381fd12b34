"""Finds the class of transformers for a config, and the text part of such a model.

A multimodal checkpoint has a config for each of its parts. Only its text part has experts that are paged and attention
over the KV cache. Its towers, which see or hear, run as transformers runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from server.model.errors import ModelError
from server.model.hooks import IMPLEMENTATION

MAPPINGS = (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)
ENCODER_MAPPINGS = (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)
REGISTERED_BY = {
    "greenroom_moe": "server.model.greenroom_moe",
    "step3p5": "server.model.step3p5",
}  # modules that give transformers a class of a type
LAYER_NAMES = ("layers", "blocks")  # of a model's decoder layers
TEXT_MODEL_CONFIGS = {"qwen3_omni_moe": "thinker_config"}  # the model that writes text, by a checkpoint of several


def text_model_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the model that writes text, in a checkpoint that may hold other models beside it."""
    name = TEXT_MODEL_CONFIGS.get(config.model_type)
    return getattr(config, name) if name else config


def config_parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a config and the configs within it, at any depth."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from config_parts(value)


def register_model_type(model_type: str) -> None:
    """Give transformers the classes of a type that it lacks, if it is one of ours."""
    if model_type in REGISTERED_BY:
        import_module(REGISTERED_BY[model_type])


def find_model_class(config: PreTrainedConfig) -> Any:
    """Return the class that a checkpoint's config names, or else the first that transformers has for it.

    Raises:
        ModelError: transformers has no class of this type that generates text, and it is no encoder that is served.
    """
    register_model_type(config.model_type)
    named = config.architectures if isinstance(config.architectures, list) else ()
    encoders = [mapping[type(config)] for mapping in ENCODER_MAPPINGS if type(config) in mapping]
    for found in encoders:
        if found.__name__ in named and packs_sequences(found):
            return found
    classes = [mapping[type(config)] for mapping in MAPPINGS if type(config) in mapping]
    classes = [found for found in classes if issubclass(found, GenerationMixin)]
    if not classes:
        raise ModelError(f"transformers has no {config.model_type} that writes text token after token")
    return next((found for found in classes if found.__name__ in named), classes[0])


def packs_sequences(model_class: Any) -> bool:
    """Return True for an encoder that takes several sequences in one row: one that is served."""
    return bool(getattr(model_class, "packs_sequences", False))


def config_of_class(config: PreTrainedConfig, model_class: Any) -> PreTrainedConfig:
    """Return the config that a class takes: the text config, if the class is only the text part of a multimodal one."""
    is_for_text = model_class.config_class is config.sub_configs.get("text_config")
    return config.get_text_config() if is_for_text else config


def set_implementations(config: PreTrainedConfig, attention: str | None = IMPLEMENTATION) -> None:
    """Route the text part's experts to our hooks, and its attention to the given implementation.

    None leaves attention to transformers' choice, as in towers.
    """
    for part in (config, config.get_text_config()):
        part._attn_implementation = {"": attention}  # noqa: SLF001
        part._experts_implementation = {"": IMPLEMENTATION}  # noqa: SLF001


def text_part(model: PreTrainedModel) -> Any:
    """Return the part of a model with its layers of experts: all but its head and the towers of other media."""
    return model if model.config.is_encoder_decoder else model.get_decoder()


def text_body(model: PreTrainedModel) -> Any:
    """Return the part whose last hidden states go to the head; some text parts have a head of their own."""
    part = text_part(model)
    return part if part.get_output_embeddings() is None else part.model


def decoder_layers(body: Any) -> nn.ModuleList | None:
    """Return the layers of a part of a model (``text_body``); None if they have another name."""
    found = (getattr(body, name, None) for name in LAYER_NAMES)
    return next((each for each in found if isinstance(each, nn.ModuleList)), None)


def head_of(model: PreTrainedModel) -> Any:
    """Return the linear layer from last hidden states to logits, which may be one of the text part; None if none is."""
    head = model.get_output_embeddings()
    return text_part(model).get_output_embeddings() if head is None else head


def text_modules(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the text part with their names in the model."""
    inside = set(text_part(model).modules())
    return ((name, module) for name, module in model.named_modules() if module in inside)
