"""Experts of a Mixture-of-Experts model as pages: on disk, in memory, leased while they compute.

A name is imported from its module when it is first used, so that bookkeeping modules load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expert_store.arena import Weights as Weights
    from expert_store.catalog import ExpertCatalog as ExpertCatalog
    from expert_store.catalog import ExpertLayout as ExpertLayout
    from expert_store.catalog import ExpertRecipe as ExpertRecipe
    from expert_store.catalog import Extent as Extent
    from expert_store.catalog import LayerEntry as LayerEntry
    from expert_store.catalog import PackedRecord as PackedRecord
    from expert_store.catalog import ParameterRecipe as ParameterRecipe
    from expert_store.catalog import ParameterSpec as ParameterSpec
    from expert_store.catalog import PartOf as PartOf
    from expert_store.catalog import SlotEncoding as SlotEncoding
    from expert_store.catalog import TensorSource as TensorSource
    from expert_store.catalog import Variant as Variant
    from expert_store.catalog import checksum_seed as checksum_seed
    from expert_store.catalog import extents as extents
    from expert_store.catalog import is_on_disk as is_on_disk
    from expert_store.entry import TierName as TierName
    from expert_store.errors import BudgetError as BudgetError
    from expert_store.errors import CheckpointError as CheckpointError
    from expert_store.errors import ChecksumError as ChecksumError
    from expert_store.errors import ExpertLoadError as ExpertLoadError
    from expert_store.errors import ExpertStoreError as ExpertStoreError
    from expert_store.errors import PackError as PackError
    from expert_store.errors import RoutingLogError as RoutingLogError
    from expert_store.errors import SourceError as SourceError
    from expert_store.errors import StoreClosedError as StoreClosedError
    from expert_store.errors import StoreFailedError as StoreFailedError
    from expert_store.file_name import FileName as FileName
    from expert_store.huge_pages import use_huge_pages as use_huge_pages
    from expert_store.io.gguf_index import BlockType as BlockType
    from expert_store.io.gguf_index import GgufHeader as GgufHeader
    from expert_store.io.gguf_index import GgufTensor as GgufTensor
    from expert_store.io.gguf_index import read_gguf_header as read_gguf_header
    from expert_store.io.metadata import check_metadata_file as check_metadata_file
    from expert_store.io.metadata import read_json_object as read_json_object
    from expert_store.io.metadata import read_metadata as read_metadata
    from expert_store.io.safetensors_index import find_shards as find_shards
    from expert_store.io.safetensors_index import is_header_only as is_header_only
    from expert_store.io.safetensors_index import read_header_metadata as read_header_metadata
    from expert_store.io.safetensors_index import read_index as read_index
    from expert_store.io.tensor_reads import TensorReads as TensorReads
    from expert_store.io.tensor_reads import empty_tensor as empty_tensor
    from expert_store.io.tensor_reads import read_tensor as read_tensor
    from expert_store.keys import BASE as BASE
    from expert_store.keys import ExpertKey as ExpertKey
    from expert_store.lease import Lease as Lease
    from expert_store.lease import ReadyExperts as ReadyExperts
    from expert_store.lease import Recorder as Recorder
    from expert_store.load_balance import LayerBalance as LayerBalance
    from expert_store.packed.manifest import UNCHANGED as UNCHANGED
    from expert_store.packed.manifest import Manifest as Manifest
    from expert_store.packed.manifest import Pack as Pack
    from expert_store.packed.manifest import is_pack as is_pack
    from expert_store.packed.manifest import open_pack as open_pack
    from expert_store.packed.manifest import read_manifest as read_manifest
    from expert_store.packed.safetensors_writer import MadeTensors as MadeTensors
    from expert_store.packed.writer import PackedLayer as PackedLayer
    from expert_store.packed.writer import PackSource as PackSource
    from expert_store.packed.writer import write_pack as write_pack
    from expert_store.prefetching.layer_stream import LayerStream as LayerStream
    from expert_store.prefetching.prefetcher import PREDICTORS as PREDICTORS
    from expert_store.prefetching.prefetcher import Gate as Gate
    from expert_store.prefetching.prefetcher import KeysOf as KeysOf
    from expert_store.prefetching.prefetcher import Prefetcher as Prefetcher
    from expert_store.prefetching.prefetcher import PrefetchMode as PrefetchMode
    from expert_store.prefetching.prefetcher import PrefetchStatistics as PrefetchStatistics
    from expert_store.prefetching.prefetcher import make_prefetcher as make_prefetcher
    from expert_store.prefetching.preloader import Preloader as Preloader
    from expert_store.routing_log.log import RoutingLogHeader as RoutingLogHeader
    from expert_store.routing_log.log import RoutingLogWriter as RoutingLogWriter
    from expert_store.routing_log.log import read_routing_log as read_routing_log
    from expert_store.slot_budget import least_bytes as least_bytes
    from expert_store.slot_budget import slots_per_layout as slots_per_layout
    from expert_store.sources.base import Source as Source
    from expert_store.sources.base import SourceFolder as SourceFolder
    from expert_store.sources.file import FileSource as FileSource
    from expert_store.sources.folder import LocalFolder as LocalFolder
    from expert_store.sources.folder import Place as Place
    from expert_store.sources.folder import as_folder as as_folder
    from expert_store.sources.memory import MemorySource as MemorySource
    from expert_store.statistics import LOAD_SECONDS_BUCKETS as LOAD_SECONDS_BUCKETS
    from expert_store.statistics import PHASES as PHASES
    from expert_store.statistics import PREFETCH_OUTCOMES as PREFETCH_OUTCOMES
    from expert_store.statistics import HitRatios as HitRatios
    from expert_store.statistics import LoadStatistics as LoadStatistics
    from expert_store.statistics import Phase as Phase
    from expert_store.statistics import StoreHealth as StoreHealth
    from expert_store.statistics import StoreStatistics as StoreStatistics
    from expert_store.statistics import TierReport as TierReport
    from expert_store.step_lease import StepLease as StepLease
    from expert_store.store import ExpertStore as ExpertStore
    from expert_store.store import encoding_memory_bytes as encoding_memory_bytes
    from expert_store.verification import unreadable_experts as unreadable_experts

_MODULE_OF = {
    "Weights": "arena",
    "ExpertCatalog": "catalog",
    "ExpertLayout": "catalog",
    "ExpertRecipe": "catalog",
    "Extent": "catalog",
    "Variant": "catalog",
    "LayerEntry": "catalog",
    "PackedRecord": "catalog",
    "ParameterRecipe": "catalog",
    "ParameterSpec": "catalog",
    "PartOf": "catalog",
    "SlotEncoding": "catalog",
    "TensorSource": "catalog",
    "checksum_seed": "catalog",
    "extents": "catalog",
    "is_on_disk": "catalog",
    "BudgetError": "errors",
    "CheckpointError": "errors",
    "ChecksumError": "errors",
    "ExpertLoadError": "errors",
    "ExpertStoreError": "errors",
    "PackError": "errors",
    "RoutingLogError": "errors",
    "StoreClosedError": "errors",
    "StoreFailedError": "errors",
    "FileName": "file_name",
    "use_huge_pages": "huge_pages",
    "check_metadata_file": "io.metadata",
    "read_json_object": "io.metadata",
    "read_metadata": "io.metadata",
    "BlockType": "io.gguf_index",
    "GgufHeader": "io.gguf_index",
    "GgufTensor": "io.gguf_index",
    "read_gguf_header": "io.gguf_index",
    "TensorReads": "io.tensor_reads",
    "empty_tensor": "io.tensor_reads",
    "read_tensor": "io.tensor_reads",
    "find_shards": "io.safetensors_index",
    "is_header_only": "io.safetensors_index",
    "read_index": "io.safetensors_index",
    "read_header_metadata": "io.safetensors_index",
    "SourceError": "errors",
    "FileSource": "sources.file",
    "Source": "sources.base",
    "SourceFolder": "sources.base",
    "MemorySource": "sources.memory",
    "LocalFolder": "sources.folder",
    "Place": "sources.folder",
    "as_folder": "sources.folder",
    "BASE": "keys",
    "ExpertKey": "keys",
    "Lease": "lease",
    "ReadyExperts": "lease",
    "Recorder": "lease",
    "UNCHANGED": "packed.manifest",
    "Manifest": "packed.manifest",
    "Pack": "packed.manifest",
    "is_pack": "packed.manifest",
    "open_pack": "packed.manifest",
    "read_manifest": "packed.manifest",
    "MadeTensors": "packed.safetensors_writer",
    "PackSource": "packed.writer",
    "PackedLayer": "packed.writer",
    "write_pack": "packed.writer",
    "LayerStream": "prefetching.layer_stream",
    "PREDICTORS": "prefetching.prefetcher",
    "Gate": "prefetching.prefetcher",
    "KeysOf": "prefetching.prefetcher",
    "PrefetchMode": "prefetching.prefetcher",
    "PrefetchStatistics": "prefetching.prefetcher",
    "Prefetcher": "prefetching.prefetcher",
    "make_prefetcher": "prefetching.prefetcher",
    "Preloader": "prefetching.preloader",
    "RoutingLogHeader": "routing_log.log",
    "RoutingLogWriter": "routing_log.log",
    "read_routing_log": "routing_log.log",
    "least_bytes": "slot_budget",
    "slots_per_layout": "slot_budget",
    "LOAD_SECONDS_BUCKETS": "statistics",
    "PHASES": "statistics",
    "PREFETCH_OUTCOMES": "statistics",
    "HitRatios": "statistics",
    "LayerBalance": "load_balance",
    "LoadStatistics": "statistics",
    "Phase": "statistics",
    "StoreHealth": "statistics",
    "StoreStatistics": "statistics",
    "TierReport": "statistics",
    "StepLease": "step_lease",
    "ExpertStore": "store",
    "encoding_memory_bytes": "store",
    "TierName": "entry",
    "unreadable_experts": "verification",
}
__all__ = list(_MODULE_OF)

if not TYPE_CHECKING:  # else type checkers take every name for defined

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
