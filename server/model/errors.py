"""Errors between a model's name and its first token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from expert_store import CheckpointError
from expert_store.io.file_names import MISTRAL_WEIGHTS

PICKLES = {".bin", ".pt", ".pth"}  # suffixes of PyTorch's files


class ModelError(Exception):
    """The model can't be served; the message says why and what to do, in one line."""


class NotBatchableError(ModelError):
    """The model can't run many sequences in one step; the message names the layers that are the reason."""


class TrunkShapeError(ModelError):
    """A tensor of a checkpoint's trunk has another shape than the config gives its parameter.

    Args:
        message: says so.
        parameter: its name in the model.
        dimensions: of its shape that are others.
    """

    def __init__(self, message: str, parameter: str, dimensions: Collection[int]):
        super().__init__(message)
        self.parameter, self.dimensions = parameter, dimensions


class ExpertShapeError(CheckpointError):
    """A tensor of experts has another shape than the config gives their parameter, or there are fewer or more of them.

    Args:
        message: says so.
        parameter: its name in the model; its first dimension is that of the experts.
        dimensions: of its shape that are others; none if a whole layer has no tensors.
    """

    def __init__(self, message: str, parameter: str, dimensions: Collection[int]):
        super().__init__(message)
        self.parameter, self.dimensions = parameter, dimensions


def incomplete(name: str, missing: Sequence[str]) -> ModelError:
    """Return the error of a checkpoint that lacks some tensors."""
    return ModelError(f"{name} lacks {missing[0]} (and {len(missing) - 1} more); download the complete checkpoint")


def in_mlx_format(model: str, originals: Sequence[str] = ()) -> ModelError:
    """Return the error of a checkpoint that MLX converted in a way that is not supported.

    Args:
        originals: hub names of what it was made from, if they are known.
    """
    source = " or ".join(originals) or "its model card names it as base_model"
    return ModelError(
        f"{model} is in MLX's format, of which 4 and 8 bits of few families are supported (docs/models.md); give the "
        f"checkpoint that it was converted from ({source}), or a GGUF, AWQ or GPTQ upload of that"
    )


def check_formats(model: str, names: Sequence[str]) -> None:
    """Refuse a model that is not a checkpoint in the safetensors format.

    Args:
        names: of all its files.

    Raises:
        ModelError: the files are in another format.
    """
    suffixes = {Path(name).suffix for name in names}
    weights = [name for name in names if Path(name).suffix == ".safetensors"]
    if "adapter_config.json" in names and "config.json" not in names:
        raise ModelError(f"{model} is an adapter; give the model that it belongs to")
    if weights and all(name.startswith(MISTRAL_WEIGHTS) for name in weights):
        raise ModelError(
            f"{model} is in Mistral's own format (params.json, {min(weights)}), which transformers does not read; give "
            "an upload of the model with config.json and model-*.safetensors, in Hugging Face's format"
        )
    if weights:
        return
    if suffixes & PICKLES:
        raise ModelError(
            f"{model} has pickled weights alone ({', '.join(sorted(suffixes & PICKLES))}), which are never opened; "
            "give the model in safetensors"
        )
