"""Experts of a Mixture-of-Experts model as pages: on disk, in memory, leased while they compute."""

from .arena import Weights
from .budget import least_bytes, share_slots
from .catalog import (
    ExpertCatalog,
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
from .errors import (
    BudgetError,
    CheckpointError,
    ChecksumError,
    ExpertLoadError,
    ExpertStoreError,
    PackError,
    StoreClosedError,
    TraceError,
)
from .keys import BASE, ExpertKey
from .lease import Lease, ReadyExperts, Recorder
from .packed import (
    UNCHANGED,
    MadeTensors,
    Manifest,
    Pack,
    PackedLayer,
    PackSource,
    is_pack,
    open_pack,
    read_manifest,
    write_pack,
)
from .pool import TierName
from .prefetch import PREDICTORS, Gate, Prefetcher, PrefetchMode, PrefetchStatistics, make_prefetcher
from .preloader import Preloader
from .reader import read_tensor
from .safetensors_index import find_shards, is_header_alone, read_index
from .statistics import (
    LOAD_SECONDS_BUCKETS,
    PHASES,
    PREFETCH_OUTCOMES,
    HitRatios,
    LoadStatistics,
    Phase,
    StoreStatistics,
    TierReport,
)
from .step_lease import StepLease
from .store import ExpertStore
from .trace import TraceHeader, TraceWriter, read_trace
from .verification import unreadable_experts

__all__ = [
    "BASE",
    "LOAD_SECONDS_BUCKETS",
    "PHASES",
    "PREDICTORS",
    "PREFETCH_OUTCOMES",
    "UNCHANGED",
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
    "Gate",
    "HitRatios",
    "LayerEntry",
    "Lease",
    "LoadStatistics",
    "MadeTensors",
    "Manifest",
    "Pack",
    "PackError",
    "PackSource",
    "PackedLayer",
    "PackedRecord",
    "ParameterRecipe",
    "ParameterSpec",
    "Phase",
    "PrefetchMode",
    "PrefetchStatistics",
    "Prefetcher",
    "Preloader",
    "ReadyExperts",
    "Recorder",
    "StepLease",
    "StoreClosedError",
    "StoreStatistics",
    "TensorSource",
    "TierName",
    "TierReport",
    "TraceError",
    "TraceHeader",
    "TraceWriter",
    "Weights",
    "checksum_seed",
    "extents",
    "find_shards",
    "is_header_alone",
    "is_pack",
    "least_bytes",
    "make_prefetcher",
    "open_pack",
    "read_index",
    "read_manifest",
    "read_tensor",
    "read_trace",
    "share_slots",
    "unreadable_experts",
    "write_pack",
]
