"""Checks that native layers take all that a multimodal model passes to its text part."""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel

from server.model.architecture import text_part
from server.model.blocks.errors import UnsupportedLayerError
from server.model.multimodal.image_embeddings import EXPERTS_OF
from server.model.native_layers.step_images import KNOWN

USUAL = {
    "input_ids",
    "attention_mask",
    "cache",
    "past_key_values",
    "use_cache",
    "logits_to_keep",
    "labels",
    "kwargs",
    "args",
}
UNUSED = {"per_layer_inputs": "hidden_size_per_layer_input"}  # if a number of the config is zero


def has_image_experts(model: PreTrainedModel) -> bool:
    """Return whether a model tells its text part which tokens go to experts for images."""
    return EXPERTS_OF in inspect.signature(text_part(model).forward).parameters


def check_inputs(model: PreTrainedModel) -> None:
    """Raise ``UnsupportedLayerError`` if the text part of a multimodal model takes other inputs than usual."""
    part, config = text_part(model), model.config.get_text_config()
    if part in (model, getattr(model, "model", None)):
        return
    unused = {name for name, number in UNUSED.items() if not getattr(config, number, 0)}
    left = inspect.signature(part.forward).parameters.keys() - USUAL - KNOWN - unused
    if left:
        raise UnsupportedLayerError(f"its text part also takes {min(left)}")
