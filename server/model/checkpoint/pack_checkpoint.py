"""A packed model, as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from expert_store import UNCHANGED, CheckpointError, FileName, Pack, TensorSource, read_json_object, read_manifest
from server.model.checkpoint.description import PLAIN, ModelDescription
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.gguf import pack_file
from server.model.checkpoint.pack_tensors import REMEDY, map_pack, packed_matrices
from server.model.checkpoint.processor_files import LoadedProcessor
from server.model.checkpoint.tensor_map import CheckpointMap, PackedMatrices

FORMAT = "greenroom"  # of packs, in lists of models


@dataclass(frozen=True)
class PackCheckpoint:
    """An open packed model; its data folder has the small files of the checkpoint before. See ``Checkpoint``."""

    pack: Pack

    @property
    def location(self) -> str:
        """The complete name of the pack's folder."""
        return self.pack.folder.name

    @property
    def name(self) -> str:
        """The name of the pack's folder."""
        return self.pack.folder.short_name

    def is_replaced(self) -> bool:
        """Return True if the manifest names another data folder now, or can't be read."""
        try:
            return read_manifest(self.pack.folder).data != self.pack.manifest.data
        except CheckpointError:
            return True

    def read_config(self) -> PreTrainedConfig:
        """Read ``config.json``."""
        return self._files.read_config()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that was packed."""
        return self._files.load_tokenizer()

    def load_processor(self) -> LoadedProcessor:
        """Load the processor that was packed."""
        return self._files.load_processor()

    def describe(self) -> ModelDescription:
        """Describe it by its config and the format of its experts."""
        weights = self.pack.manifest.weights
        if weights == UNCHANGED:
            weights = str(read_json_object(self.pack.data_folder.source(pack_file.NAME), REMEDY).get(pack_file.WEIGHTS))
        found = self._files.describe()
        return replace(found, format=FORMAT, weights=PLAIN.get(weights, weights.upper()))

    def notes(self) -> list[str]:
        """Tell nothing."""
        return []

    def generation_values(self) -> Mapping[str, Any] | None:
        """Return the content of ``generation_config.json``."""
        return self._files.generation_values()

    def small_files(self) -> Mapping[FileName, bytes]:
        """Return the small files that were packed."""
        return self._files.small_files()

    def index(self) -> Mapping[str, TensorSource]:
        """Return no tensors: a pack's may be quantised."""
        return {}

    def packed_matrices(self, _: PreTrainedModel) -> PackedMatrices:
        """Return the quantised matrices of the packed trunk."""
        return packed_matrices(self.pack)

    def map(self, model: PreTrainedModel) -> CheckpointMap:
        """Compare the pack with its model, and return its trunk and experts."""
        return map_pack(model, self.pack)

    @cached_property
    def _files(self) -> FolderCheckpoint:
        return FolderCheckpoint(self.pack.data_folder)
