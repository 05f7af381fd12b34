"""Checkpoint: what a model is loaded from. Loading, serving and inspecting know this interface, and no files.

A folder of safetensors (``folder_checkpoint.py``), a packed model (``pack_checkpoint.py``) and a file of llama.cpp
(``gguf/``) are checkpoints, wherever their sources are. Another format is another class: it may make the config and the
tokenizer from metadata of its own, and map blocks of its own quantisation, each as a ``StoredTensor`` of bytes that its
matrices convert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from expert_store import FileName, TensorSource
from server.model.checkpoint.description import ModelDescription
from server.model.checkpoint.processor_files import LoadedProcessor
from server.model.checkpoint.tensor_map import CheckpointMap, PackedMatrices


class Checkpoint(Protocol):
    """A model's config, tokenizer, defaults and tensors."""

    @property
    def location(self) -> str:
        """The place that it was opened at, for messages: a path, or another name."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    def is_replaced(self) -> bool:
        """Return True if another one has taken its place since it was opened, so that its sources may be gone."""

    def read_config(self) -> PreTrainedConfig:
        """Read the config, and check that Greenroom can serve it.

        Raises:
            ModelError: transformers has no text generation for it, or its values or quantisation are not supported.
            CheckpointError: a file is damaged.
        """

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer, with its chat template.

        Raises:
            ModelError: only code of the checkpoint could read it.
            Exception: of any kind, as transformers and tokenizers raise for damaged files.
        """

    def load_processor(self) -> LoadedProcessor:
        """Load transformers' processor of chats with images.

        Raises:
            NoImagesError: the model takes no images, or the format has no files for them.
        """

    def describe(self) -> ModelDescription:
        """Describe it for lists of models.

        Raises:
            ModelError, CheckpointError: its config can't be read.
        """

    def notes(self) -> list[str]:
        """Tell what of its files is not used, a sentence each."""

    def generation_values(self) -> Mapping[str, Any] | None:
        """Return the defaults for generation, as in ``generation_config.json``; None if there are none.

        Raises:
            CheckpointError: they can't be read.
        """

    def small_files(self) -> Mapping[FileName, bytes]:
        """Return config, tokenizer, template and defaults as the files of a folder, which a pack keeps.

        Raises:
            CheckpointError: one can't be read.
        """

    def index(self) -> Mapping[str, TensorSource]:
        """Return the tensors that have the values of the hub's checkpoint, by name.

        A pack has none. Of a GGUF file they are those that are not quantised.

        Raises:
            CheckpointError: a file is missing or damaged.
        """

    def packed_matrices(self, model: PreTrainedModel) -> PackedMatrices:
        """Return the matrices of the trunk that stay quantised in memory.

        Args:
            model: the model of the config on the meta device.

        Raises:
            CheckpointError: a file is damaged.
        """

    def map(self, model: PreTrainedModel) -> CheckpointMap:
        """Sort the tensors into trunk and experts.

        Args:
            model: the model of the config on the meta device, with its experts' parameters.

        Raises:
            ModelError: the model has no experts that can be paged.
            CheckpointError: a tensor of an expert is missing or has the wrong size; the message names it.
        """
