"""The packed format: one aligned, checksummed record per expert; how it is read, and how it is written."""

from .manifest import UNCHANGED, Manifest, Pack, is_pack, open_pack, read_manifest
from .safetensors_writer import MadeTensors
from .writer import PackedLayer, PackSource, write_pack

__all__ = [
    "UNCHANGED",
    "MadeTensors",
    "Manifest",
    "Pack",
    "PackSource",
    "PackedLayer",
    "is_pack",
    "open_pack",
    "read_manifest",
    "write_pack",
]
