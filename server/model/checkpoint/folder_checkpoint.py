"""A folder of safetensors, as the hub has them, as a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from expert_store import TensorSource, find_shards, read_index, read_json_object
from server.model.checkpoint.config_checks import CONFIG
from server.model.checkpoint.description import ModelDescription, describe_folder
from server.model.checkpoint.model_types import is_served_as_another
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.tensor_map import CheckpointMap, PackedMatrices, map_checkpoint
from server.model.errors import ModelError
from server.setting_values import GENERATION_FILE

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class FolderCheckpoint:
    """A folder with ``config.json``, the tokenizer's files and safetensors; see ``Checkpoint``."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def processor_folder(self) -> Path:
        """The folder itself."""
        return self.path

    def read_config(self) -> PreTrainedConfig:
        """Read ``config.json``."""
        return read_config(self.path)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer as transformers does.

        For a type that another's class computes it is the ``tokenizer.json``, whatever code is beside it.
        """
        if not (self.path / CONFIG).is_file() or not is_served_as_another(self.path):
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        if not (self.path / TOKENIZER).is_file():
            raise ModelError(
                f"{self.name} has no tokenizer.json, and code that a checkpoint brings (auto_map) is never run; add "
                "the tokenizer.json of a conversion of this model"
            )
        return PreTrainedTokenizerFast.from_pretrained(self.path)

    def describe(self) -> ModelDescription:
        """Describe it by its config."""
        return describe_folder(self.path, self.read_config())

    def notes(self) -> list[str]:
        """Tell nothing."""
        return []

    def generation_values(self) -> Mapping[str, Any] | None:
        """Return the content of ``generation_config.json``."""
        path = self.path / GENERATION_FILE
        return read_json_object(path) if os.path.lexists(path) else None

    def index(self) -> Mapping[str, TensorSource]:
        """Return all tensors of the shards."""
        return read_index(find_shards(self.path))

    def packed_matrices(self, _: PreTrainedModel) -> PackedMatrices:
        """Return no matrices."""
        return {}

    def map(self, model: PreTrainedModel) -> CheckpointMap:
        """Sort the tensors of the shards."""
        return map_checkpoint(model, self.index())
