"""Experts of a Mixture-of-Experts model as pages: on disk, in memory, leased while they compute."""

from .catalog import (
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    Extent,
    LayerEntry,
    PackedRecord,
    ParameterRecipe,
    ParameterSpec,
    TensorSource,
    checksum_seed,
    extents,
)
from .errors import BudgetError, CheckpointError, ChecksumError, ExpertLoadError, ExpertStoreError, StoreClosedError
from .reader import read_tensor
from .safetensors_index import find_shards, read_index
from .statistics import LOAD_SECONDS_BUCKETS, PHASES, Phase, StoreStatistics
from .store import ExpertStore, Lease, Weights, least_bytes

__all__ = [
    "LOAD_SECONDS_BUCKETS",
    "PHASES",
    "BudgetError",
    "CheckpointError",
    "ChecksumError",
    "ExpertCatalog",
    "ExpertKey",
    "ExpertLayout",
    "ExpertLoadError",
    "ExpertStore",
    "ExpertStoreError",
    "Extent",
    "LayerEntry",
    "Lease",
    "PackedRecord",
    "ParameterRecipe",
    "ParameterSpec",
    "Phase",
    "StoreClosedError",
    "StoreStatistics",
    "TensorSource",
    "Weights",
    "checksum_seed",
    "extents",
    "find_shards",
    "least_bytes",
    "read_index",
    "read_tensor",
]
