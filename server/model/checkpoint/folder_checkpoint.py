"""A folder of safetensors, as the hub has them, as a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from expert_store import (
    FileName,
    Place,
    Source,
    TensorSource,
    as_folder,
    find_shards,
    read_index,
    read_json_object,
    read_metadata,
)
from server.model.checkpoint.config_checks import CONFIG
from server.model.checkpoint.description import LICENCES, ModelDescription, describe_folder
from server.model.checkpoint.model_types import is_served_as_another, reads_images_alone
from server.model.checkpoint.processor_files import LoadedProcessor, load_processor
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.tensor_map import CheckpointMap, PackedMatrices, map_checkpoint
from server.model.errors import ModelError
from server.setting_values import GENERATION_FILE

PATCH = "<patch>"  # the only token of a model of images alone
TOKENIZER = "tokenizer.json"
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")  # config, tokenizer and defaults for generation
NOT_PACKED = ("*.index.json", "LICENSE*", "README*")


class FolderCheckpoint:
    """A folder with ``config.json``, the tokenizer's files and safetensors; see ``Checkpoint``."""

    def __init__(self, place: Place):
        self.folder = as_folder(place)

    @property
    def location(self) -> str:
        """The folder's complete name."""
        return self.folder.name

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.short_name

    def is_replaced(self) -> bool:
        """Return False: such a folder is not written again while it is served."""
        return False

    def read_config(self) -> PreTrainedConfig:
        """Read ``config.json``."""
        return read_config(self._local)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer as transformers does.

        A model of images alone has none, so its only token stands for a patch.

        For a type that another's class computes it is the ``tokenizer.json``, whatever code is beside it.
        """
        if (self._local / CONFIG).is_file() and reads_images_alone(self._local):
            return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({PATCH: 0}, unk_token=PATCH)))
        if not (self._local / CONFIG).is_file() or not is_served_as_another(self._local):
            return AutoTokenizer.from_pretrained(self._local, trust_remote_code=False)
        if not (self._local / TOKENIZER).is_file():
            raise ModelError(
                f"{self.name} has no tokenizer.json, and code that a checkpoint brings (auto_map) is never run; add "
                "the tokenizer.json of a conversion of this model"
            )
        return PreTrainedTokenizerFast.from_pretrained(self._local)

    def load_processor(self) -> LoadedProcessor:
        """Load the processor as transformers does."""
        return load_processor(self._local)

    def describe(self) -> ModelDescription:
        """Describe it by its config."""
        return describe_folder(self._local, self.read_config())

    def notes(self) -> list[str]:
        """Tell nothing."""
        return []

    def generation_values(self) -> Mapping[str, Any] | None:
        """Return the content of ``generation_config.json``."""
        path = self._local / GENERATION_FILE
        return read_json_object(path) if os.path.lexists(path) else None

    def small_files(self) -> Mapping[FileName, bytes]:
        """Return the files beside the weights, but for licences and the index."""
        found = {path for pattern in SMALL_FILES for path in self._local.glob(pattern) if path.is_file()}
        found -= {path for pattern in NOT_PACKED for path in self._local.glob(pattern)}
        return {FileName(path.name): read_metadata(path) for path in sorted(found)}

    @property
    def has_shards(self) -> bool:
        """True if it has files of tensors."""
        return any(name.endswith(".safetensors") for name in self.folder.names())

    def shards(self) -> list[Source]:
        """Return the files of the tensors.

        Raises:
            CheckpointError: there are none, or one is missing.
        """
        return find_shards(self.folder)

    def index(self) -> Mapping[str, TensorSource]:
        """Return all tensors of the shards."""
        return read_index(self.shards())

    def packed_matrices(self, _: PreTrainedModel) -> PackedMatrices:
        """Return no matrices."""
        return {}

    def map(self, model: PreTrainedModel) -> CheckpointMap:
        """Sort the tensors of the shards."""
        return map_checkpoint(model, self.index())

    @cached_property
    def _local(self) -> Path:
        """A folder on a disk that has the small files."""
        return self.folder.local_copy([*SMALL_FILES, *LICENCES])
