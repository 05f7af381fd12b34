"""Makes what `greenroom family` prints."""

from __future__ import annotations

import torch

from server.inspection.model_summary import open_without_weights
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.attention.rope import max_served_length
from server.model.blocks.errors import UnsupportedLayerError
from server.model.checkpoint.config_checks import config_errors
from server.model.declarations.source import source_of
from server.model.errors import ModelError
from server.model.model_building import build_model
from server.model.recognition.find_program import find_declaration
from server.model.transformers_output import silence_transformers


@torch.inference_mode()
def family_source(model: str) -> str:
    """Return what a model is, as the source of a file of ``server/model/families``.

    Args:
        model: as users name it.

    Raises:
        ModelError, CheckpointError: the model can't be found, or the native kernels can't run it.
    """
    silence_transformers()
    native = availability()
    if not native.runnable:
        raise ModelError("what a model is, is found with the native kernels, which this machine can't run")
    with open_without_weights(model) as (checkpoint, name):
        config = checkpoint.read_config()
        built = build_model(config, torch.float32)
        with config_errors(config):
            longest = max_served_length(built.config.get_text_config(), None)
            try:
                found = find_declaration(built, Kernels(1), longest)
            except UnsupportedLayerError as error:
                raise ModelError(f"transformers' modules run {name}, because {error}") from error
        return source_of(found, built.config.get_text_config())
