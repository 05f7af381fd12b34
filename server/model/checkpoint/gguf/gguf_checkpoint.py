"""A model in the GGUF format, as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from expert_store import UNCHANGED, TensorSource
from server.kernels.formats.ggml_types import GgmlType
from server.model.architecture import find_model_class
from server.model.checkpoint.config_checks import check_config, reason_of
from server.model.checkpoint.gguf.architectures import ARCHITECTURES, Architecture
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.gguf_tokenizer import end_token_ids, make_tokenizer
from server.model.checkpoint.gguf.tensors import Tensors, named_tensors, packed_linears
from server.model.checkpoint.tensor_map import CheckpointMap, PackedMatrices, map_checkpoint
from server.model.errors import ModelError

SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}  # general.sampling.KEY


@dataclass(frozen=True)
class GgufCheckpoint:
    """A GGUF file, or the files that it is split into; see ``Checkpoint``."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def processor_folder(self) -> None:
        """None: files with the image part of a model are not read."""
        return None

    def read_config(self) -> PreTrainedConfig:
        """Make the config from the metadata."""
        values = self._values
        try:
            config: PreTrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))
        except Exception as error:  # the classes of configs check their values in many ways
            raise ModelError(
                f"the metadata of {self.name} can't be used: {reason_of(error, values)}; download the file again"
            ) from error
        config._name_or_path = str(self.path)  # noqa: SLF001  as from_pretrained sets it
        check_config(config, self.path)
        find_model_class(config)
        return config

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Make the tokenizer from the metadata."""
        return make_tokenizer(self._file)

    def generation_values(self) -> Mapping[str, Any] | None:
        """Return the end tokens and the sampling that the metadata names."""
        metadata = self._file.metadata
        sampling = {name: metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
        numbers = {name: value for name, value in sampling.items() if isinstance(value, int | float)}
        return numbers | {"eos_token_id": end_token_ids(self._file)}

    def index(self) -> Mapping[str, TensorSource]:
        """Return no tensors: most are not those of the hub's checkpoint."""
        return {}

    def packed_matrices(self, model: PreTrainedModel) -> PackedMatrices:
        """Return the quantised matrices of linear layers."""
        return packed_linears(model, self._tensors)

    def map(self, model: PreTrainedModel) -> CheckpointMap:
        """Sort the tensors of the file."""
        packed = packed_linears(model, self._tensors)
        plain = {name: source for name, source in self._tensors.items() if name not in packed}
        return replace(map_checkpoint(model, plain), packed=packed)

    @cached_property
    def _file(self) -> GgufFile:
        return GgufFile.open(self.path)

    @cached_property
    def _architecture(self) -> Architecture:
        found = ARCHITECTURES.get(self._file.architecture)
        if found is None or not self._file.has("expert_count"):
            what = f"of the architecture {self._file.architecture}" if found is None else "without experts"
            raise ModelError(
                f"{self.name} is a model {what}, which Greenroom does not read from GGUF; it reads Mixture-of-Experts "
                f"models of {', '.join(sorted(ARCHITECTURES))}"
            )
        return found

    @cached_property
    def _tensors(self) -> Tensors:
        return named_tensors(self._file, self._architecture, self._values)

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The values of the config.

        Raises:
            ModelError: the metadata is not that of such a model.
        """
        try:
            return self._architecture.config(self._file)
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:  # a value of another kind
            raise ModelError(
                f"the metadata of {self.name} is not that of a {self._file.architecture} model: {error}; download the "
                "file again"
            ) from error


def trunk_types(matrices: PackedMatrices) -> str:
    """Return the names of the types that the trunk's linear layers have in the file."""
    names = {each.format.name for each in matrices.values() if isinstance(each.format, GgmlType)}
    return ", ".join(sorted(names)) or UNCHANGED
