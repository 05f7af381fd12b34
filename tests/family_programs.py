"""Finds what of a family runs natively, from its config alone, and writes its line of docs/models.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from server.kernels.native.library import Kernels
from server.model.attention.indexer import TOP_K
from server.model.checkpoint.config_catalog import catalog_from_config
from server.model.checkpoint.read_config import read_config
from server.model.from_config.program import program_of_config
from server.model.from_config.shapes import infer_shapes
from server.model.program import ModelProgram, Target
from tests.checkpoints import transformers_class
from tests.families import FAMILIES, RELATIVE, make_config

BATCHED = [name for name, family in FAMILIES.items() if family.refusal is None and family.sequential is None]


@dataclass(frozen=True)
class FamilyProgram:
    """A record of what runs where in a family whose sequences share steps."""

    model_type: str
    program: ModelProgram

    def __str__(self) -> str:
        return f"| `{self.model_type}` | {self._native} | {self._attention} | {self._why} |".replace("|  |", "| |")

    @property
    def _native(self) -> str:
        if not self.program.has_native:
            return "experts and linear layers"
        outside = {block.name for block in self.program.layers if block.mixer is not Target.NATIVE}
        return "all but " + ", ".join(f"`{name}`" for name in sorted(outside)) if outside else "all"

    @property
    def _attention(self) -> str:
        by_sequence = FAMILIES[self.model_type].by_sequence
        if by_sequence is not None and not self.program.is_native:
            return "all sequences, but for prompts" if by_sequence == RELATIVE else "one sequence after the other"
        config = make_config(self.model_type).get_text_config()
        if not self.program.has_native and hasattr(config, TOP_K):
            return "all sequences, but for indexers"
        return "all sequences"

    @property
    def _why(self) -> str:
        if self.program.is_hybrid:
            return "there is no native mixer of this kind"
        return (self.program.reason or "").partition(", off by")[0]  # an error differs from processor to processor


def program_of(model_type: str, folder: Path) -> FamilyProgram:
    """Try the config of a family, in float32.

    Args:
        model_type: of a family whose sequences share steps.
        folder: for the config.
    """
    config = make_config(model_type)
    config.architectures = [transformers_class(config)._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    read = read_config(folder)
    kernels = Kernels(1)
    try:
        catalog = catalog_from_config(infer_shapes(read, torch.float32, has_kernels=True).model)
        return FamilyProgram(model_type, program_of_config(read, torch.float32, kernels, catalog))
    finally:
        kernels.close()
