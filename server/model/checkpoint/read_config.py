"""Reads the config of a checkpoint's folder, with all checks."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from expert_store import ExpertStoreError
from server.model.architecture import find_model_class, text_model_config
from server.model.attention.rope import apply_nested_rope_base
from server.model.checkpoint.config_checks import CONFIG, check_config, check_files, read_config_values, reason_of
from server.model.checkpoint.locate import config_folder
from server.model.checkpoint.model_types import load_config
from server.model.errors import ModelError
from server.model.quantised.scheme import find_scheme, share_quantisation


def read_config(folder: Path) -> PreTrainedConfig:
    """Read the config of a checkpoint or a packed model, and check that Greenroom can serve it.

    Raises:
        ModelError: there is no config, transformers has no text generation for it, or its values or its quantisation
            are not supported.
        CheckpointError: a file that is read beside the weights is damaged.
    """
    folder = config_folder(folder)
    if not os.path.lexists(folder / CONFIG):
        raise ModelError(f"{folder} has no config.json; give the folder of a Hugging Face checkpoint")
    check_files(folder)
    values = read_config_values(folder)
    try:
        full_config = load_config(folder)
        config = text_model_config(full_config)
        share_quantisation(full_config, config, folder)
        apply_nested_rope_base(config, values)
    except ExpertStoreError:
        raise
    except Exception as error:  # the classes of configs check their values in many ways
        # The lines of StrictDataclassError name the field and the expected type.
        reason = reason_of(error, values) if isinstance(error, StrictDataclassError | KeyError) else _first_line(error)
        raise ModelError(f"config.json of {folder.name} can't be used: {reason}") from error
    check_config(config, folder.name)
    find_model_class(config)
    find_scheme(config, folder.name)
    return config


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
