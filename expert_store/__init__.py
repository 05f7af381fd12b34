"""Experts of a Mixture-of-Experts model as pages: on disk, in memory, leased while they compute."""

from .catalog import (
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    Extent,
    LayerEntry,
    ParameterRecipe,
    ParameterSpec,
    TensorSource,
)
from .errors import BudgetError, CheckpointError, ExpertLoadError, ExpertStoreError, StoreClosedError
from .reader import read_tensor
from .safetensors_index import find_shards, read_index
from .statistics import LOAD_SECONDS_BUCKETS, PHASES, Phase, StoreStatistics
from .store import ExpertStore, Lease, Weights, least_bytes

__all__ = [
    "LOAD_SECONDS_BUCKETS",
    "PHASES",
    "BudgetError",
    "CheckpointError",
    "ExpertCatalog",
    "ExpertKey",
    "ExpertLayout",
    "ExpertLoadError",
    "ExpertStore",
    "ExpertStoreError",
    "Extent",
    "LayerEntry",
    "Lease",
    "ParameterRecipe",
    "ParameterSpec",
    "Phase",
    "StoreClosedError",
    "StoreStatistics",
    "TensorSource",
    "Weights",
    "find_shards",
    "least_bytes",
    "read_index",
    "read_tensor",
]
