"""A model in the GGUF format, as a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from expert_store import UNCHANGED, CheckpointError, FileName, Place, TensorSource, as_folder
from server.kernels.formats.ggml_types import GgmlType
from server.model.architecture import find_model_class
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.config_checks import check_config, reason_of
from server.model.checkpoint.description import ModelDescription
from server.model.checkpoint.gguf.architecture import Architecture
from server.model.checkpoint.gguf.description import describe_file
from server.model.checkpoint.gguf.end_tokens import end_token_ids
from server.model.checkpoint.gguf.gguf_file import REMEDY, GgufFile
from server.model.checkpoint.gguf.gguf_tokenizer import check_tokenizer, make_tokenizer, num_embeddings
from server.model.checkpoint.gguf.known_keys import check_keys
from server.model.checkpoint.gguf.small_files import make_small_files
from server.model.checkpoint.gguf.tensors import Tensors, check_shapes, named_tensors, packed_matrices
from server.model.checkpoint.local_files import GGUF, is_projector, names_of_splits
from server.model.checkpoint.number_ranges import number_out_of_range
from server.model.checkpoint.processor_files import LoadedProcessor, NoImagesError
from server.model.checkpoint.tensor_map import CheckpointMap, PackedMatrices, map_checkpoint, missing_parameters
from server.model.errors import ModelError
from server.model.families.registry import gguf_architectures
from server.model.quantised.column_order import OrderedColumns
from server.model.quantised.divided import Divided
from server.model.quantised.latent_expansion import LatentExpansion
from server.model.quantised.linear import LinearFormat
from server.model.quantised.scheme import forget_quantisation

log = logging.getLogger(__name__)

MOST_NAMED = 20  # unknown keys of a header in the log
TEXT_TYPES = {"qwen3_vl_moe_text": "qwen3_moe"}  # text parts without a class of their own, and what computes the same
SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}  # general.sampling.KEY


class GgufCheckpoint:
    """A GGUF file, or the files that it is split into; see ``Checkpoint``.

    Args:
        place: the folder of the files.
        name: of any of them.
        original: what it was made from, whose config and tokenizer count instead of the file's.
    """

    def __init__(self, place: Place, name: FileName, original: Checkpoint | None = None):
        self._folder, self._file_name, self._original = as_folder(place), name, original

    @property
    def name(self) -> str:
        """The file's name."""
        return self._file_name

    @property
    def location(self) -> str:
        """The file's complete name."""
        return self._folder.source(self._file_name).name

    def is_replaced(self) -> bool:
        """Return False: a file is not written again while it is served."""
        return False

    def read_config(self) -> PreTrainedConfig:
        """Make the config from the metadata, or read that of the original."""
        if self._original is not None:
            return self._config_of(self._original)
        values = self._values
        check_tokenizer(self._file)
        try:
            config: PreTrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))
        except Exception as error:  # the classes of configs check their values in many ways
            raise ModelError(
                f"the metadata of {self.name} can't be used: {reason_of(error, values)}; download the file again"
            ) from error
        config._name_or_path = self.location  # noqa: SLF001  as from_pretrained sets it
        check_config(config, self.name)
        find_model_class(config)
        return config

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Make the tokenizer from the metadata, or load that of the original."""
        if self._original is None:
            return make_tokenizer(self._file)
        tokenizer, rows = self._original.load_tokenizer(), num_embeddings(self._file)
        if rows is not None and len(tokenizer) > rows:
            raise self._not_from_original(
                f"its tokenizer has {len(tokenizer)} tokens, the file's table of embeddings {rows}"
            )
        return tokenizer

    def load_processor(self) -> LoadedProcessor:
        """Raise NoImagesError: files with the image part of a model are not read."""
        raise NoImagesError(
            "images are not read from this format of checkpoints; serve the model in safetensors, or send text alone"
        )

    def describe(self) -> ModelDescription:
        """Describe it by its metadata and the types of its tensors."""
        return describe_file(self._file)

    def notes(self) -> list[str]:
        """Name files with the image part of the model, and its tensors in this file."""
        is_named = self._file_name.endswith(GGUF)  # else the folder is one of all models' files
        names = sorted(name for name in self._folder.names() if is_projector(name)) if is_named else []
        tensors = [f"the image part in the file ({len(found)} tensors)"] if (found := self._file.image_tensors) else []
        return [f"{each} is not used: images are not read from GGUF" for each in (*names, *tensors)]

    def generation_values(self) -> Mapping[str, Any] | None:
        """Return the end tokens and the sampling that the original or the metadata names."""
        found = None if self._original is None else self._original.generation_values()
        if found is not None:
            return found
        metadata = self._file.metadata
        sampling = {name: metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
        numbers = {name: value for name, value in sampling.items() if isinstance(value, int | float)}
        return numbers | {"eos_token_id": end_token_ids(self._file)}

    def small_files(self) -> Mapping[FileName, bytes]:
        """Return the files that say what the metadata does."""
        return make_small_files(self.read_config(), self.load_tokenizer(), self.generation_values())

    def index(self) -> Mapping[str, TensorSource]:
        """Return the tensors that are not quantised, and have the values of the hub's checkpoint."""
        return {name: source for name, source in self._tensors.items() if isinstance(source, TensorSource)}

    def stored_tensors(self) -> Tensors:
        """Return all tensors by the names of the hub's checkpoint, quantised ones too."""
        return self._tensors

    def packed_matrices(self, model: PreTrainedModel) -> PackedMatrices:
        """Return the quantised matrices of linear layers and embeddings."""
        return packed_matrices(model, self._tensors)

    def map(self, model: PreTrainedModel) -> CheckpointMap:
        """Sort the tensors of the file."""
        return self._map(model, packed_matrices(model, self._tensors))

    def map_unpacked(self, model: PreTrainedModel) -> CheckpointMap:
        """Sort the tensors of the file; no matrix of the trunk stays quantised."""
        return self._map(model, {})

    def _map(self, model: PreTrainedModel, packed: PackedMatrices) -> CheckpointMap:
        try:
            plain = {name: source for name, source in self._tensors.items() if name not in packed}
            found = replace(map_checkpoint(model, plain), packed=packed)
            check_shapes(model, {name: self._tensors[name] for name in (*found.trunk, *packed)})
        except CheckpointError as error:
            if self._original is None:
                if len(names_of_splits(self._file_name)) == 1:
                    raise
                raise CheckpointError(f"{error}; files of different models may be mixed: {REMEDY}") from error
            raise self._not_from_original(str(error)) from error
        missing = missing_parameters(model, [*found.trunk, *packed]) if self._original is not None else []
        if missing:
            raise self._not_from_original(f"the file lacks {missing[0]}")
        return found

    def _config_of(self, original: Checkpoint) -> PreTrainedConfig:
        """Read the config of the original, whose quantisation is not that of the file."""
        config = _text_part(original.read_config())
        forget_quantisation(config)
        num_layers = self._file.integer("block_count") - self._file.integer("nextn_predict_layers", 0)
        if config.num_hidden_layers != num_layers:
            raise self._not_from_original(f"it has {config.num_hidden_layers} layers, the file {num_layers}")
        return config

    @cached_property
    def _file(self) -> GgufFile:
        return GgufFile.open(self._folder, self._file_name)

    @cached_property
    def _architecture(self) -> Architecture:
        found = gguf_architectures().get(self._file.architecture)
        if found is None or not self._file.has("expert_count"):
            what = f"of the architecture {self._file.architecture}" if found is None else "without experts"
            raise ModelError(
                f"{self.name} is a model {what}, which Greenroom does not read from GGUF; it reads Mixture-of-Experts "
                f"models of {', '.join(gguf_architectures())}"
            )
        return found

    @cached_property
    def _tensors(self) -> Tensors:
        return named_tensors(self._file, self._architecture, self._values)

    def _not_from_original(self, reason: str) -> ModelError:
        name = "" if self._original is None else self._original.location
        return ModelError(
            f"{self.name} was not made from {name}: {reason}; give --config-from the model that it was made from"
        )

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The values of the config.

        Raises:
            ModelError: the metadata is not that of such a model.
        """
        if self._original is not None:
            config = self.read_config()
            values: dict[str, Any] = config.to_dict()
            return values | {"num_hidden_layers": config.num_hidden_layers}  # computed in some classes
        self._check_numbers(self._file.own_metadata())
        try:
            unknown = check_keys(self._file, self._architecture.keys)
            values = self._architecture.config(self._file)
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:  # a value of another kind
            raise ModelError(
                f"the metadata of {self.name} is not that of a {self._file.architecture} model: {error}; download the "
                "file again"
            ) from error
        self._check_numbers(values)
        if unknown:
            log.warning("%s has keys that are not read: %s", self.name, ", ".join(unknown[:MOST_NAMED]))
        return values

    def _check_numbers(self, values: Mapping[str, Any]) -> None:
        wrong = number_out_of_range(values)
        if wrong is not None:
            raise ModelError(f"the metadata of {self.name} can't be used: {wrong}; {REMEDY}")


def _text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the language model alone, which is all that a GGUF file has of a model with images."""
    text: PreTrainedConfig = config.get_text_config(decoder=True)
    if text.model_type not in TEXT_TYPES:
        return text
    model_type = TEXT_TYPES[text.model_type]
    found: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(
        text.to_dict() | {"model_type": model_type, "norm_topk_prob": True}
    )
    found._name_or_path = config._name_or_path  # noqa: SLF001  as from_pretrained sets it
    return found


def trunk_types(matrices: PackedMatrices) -> str:
    """Return the names of the types that the trunk's matrices have in the file."""
    names = {kind.name for each in matrices.values() for kind in _stored(each.format) if isinstance(kind, GgmlType)}
    return ", ".join(sorted(names)) or UNCHANGED


def _stored(form: LinearFormat) -> tuple[LinearFormat, ...]:
    if isinstance(form, LatentExpansion):
        return form.keys, form.values
    return _stored(form.stored) if isinstance(form, OrderedColumns | Divided) else (form,)
