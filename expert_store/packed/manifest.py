"""Manifest of the packed format, which names one aligned, checksummed record per expert.

``FOLDER/manifest.json`` names a data folder beside it. That holds unchanged copies of ``config.json`` and the
tokenizer's files, the trunk under the hub's names in ``trunk.safetensors``, and records back to back in
``experts-NNNNN.pack``. A record is all bytes of a slot, so that one direct read fills it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from expert_store.catalog import (
    ExpertCatalog,
    ExpertLayout,
    Extent,
    LayerEntry,
    PackedRecord,
    ParameterSpec,
)
from expert_store.errors import CheckpointError, SourceError, SourceGoneError
from expert_store.file_name import FileName
from expert_store.io.metadata import read_bytes, read_json_object
from expert_store.io.safetensors_index import DTYPES
from expert_store.packed.names import DATA_FOLDER, DataFolderName, PlainName
from expert_store.sources.base import PAGE_BYTES, OpenSource, Source, SourceFolder
from expert_store.sources.folder import Place, as_folder

FORMAT = "greenroom-pack"
VERSION = 1
MANIFEST_NAME = FileName("manifest.json")
TRUNK_NAME = FileName("trunk.safetensors")
PACK_SUFFIX = ".pack"
UNCHANGED: Literal["unchanged"] = "unchanged"  # the trunk has the checkpoint's format
CHUNK_BYTES = 8 << 20
REMEDY = "copy it again, or pack the model again"  # for a file that differs from what was packed


def _dtype_name(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"{name!r} is not a dtype")
    return name


Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
DtypeName = Annotated[str, AfterValidator(_dtype_name)]


class ManifestParameter(NamedTuple):
    """One tensor of an expert, in the order of the record."""

    name: str
    dtype: DtypeName
    shape: tuple[Annotated[int, Field(ge=1)], ...]


class ManifestRecord(NamedTuple):
    """File, offset and checksum of one expert's record: XXH3 with ``checksum_seed``."""

    file: PlainName
    offset: Count
    checksum: Digest


class ManifestLayer(BaseModel):
    """One MoE layer, with its experts in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: Count
    records: Annotated[tuple[ManifestRecord, ...], Field(min_length=1)]


class ManifestFile(NamedTuple):
    """Size and checksum of a file of the data folder; files of records have a checksum per record instead."""

    nbytes: Count
    checksum: Digest | None


class Manifest(BaseModel):
    """The content of ``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str  # the name that it is served under
    weights: str  # format of the experts: bfloat16, int8, int4
    trunk: str = UNCHANGED  # format of the trunk's linear layers: unchanged, int8, int4
    source: str  # fingerprint of the checkpoint
    data: DataFolderName
    layouts: tuple[Annotated[tuple[ManifestParameter, ...], Field(min_length=1)], ...]
    layers: Annotated[dict[Count, ManifestLayer], Field(min_length=1)]
    files: dict[PlainName, ManifestFile]

    def to_bytes(self) -> bytes:
        """Return JSON with format, version and a checksum of everything else."""
        content = {"format": FORMAT, "version": VERSION, **self.model_dump(mode="json", exclude_defaults=True)}
        return _canonical(content | {"checksum": _self_checksum(content)}) + b"\n"

    def expert_layouts(self) -> list[ExpertLayout]:
        return [
            ExpertLayout(tuple(ParameterSpec(name, DTYPES[dtype], shape) for name, dtype, shape in layout))
            for layout in self.layouts
        ]


@dataclass(frozen=True)
class Pack:
    """A packed model with all its files."""

    folder: SourceFolder
    manifest: Manifest
    catalog: ExpertCatalog

    @property
    def data_folder(self) -> SourceFolder:
        """The folder of ``config.json``, the tokenizer's files, the trunk and the records."""
        return self.folder.folder(self.manifest.data)

    @property
    def trunk(self) -> Source:
        """The file of the trunk's tensors, under their names on the hub."""
        return self.data_folder.source(TRUNK_NAME)


def is_pack(place: Place) -> bool:
    """Return True if a folder looks like a packed model; ``open_pack`` checks it."""
    with suppress(SourceError):
        names = as_folder(place).names()
        return MANIFEST_NAME in names and "config.json" not in names
    return False


def open_pack(place: Place) -> Pack:
    """Read a packed model's manifest and check every file against it.

    The bytes of records are checked when they are read.

    Raises:
        CheckpointError: the manifest is damaged or of another version, or a file is missing, of another size, changed,
            or not a part of the pack; the message names it.
    """
    folder = as_folder(place)
    manifest = read_manifest(folder)
    try:
        return _open(folder, manifest)
    except CheckpointError:
        if read_manifest(folder).data == manifest.data:
            raise
        return open_pack(folder)  # the pack was replaced meanwhile


def _open(folder: SourceFolder, manifest: Manifest) -> Pack:
    data = folder.folder(manifest.data)
    there: set[FileName] = set()
    with suppress(SourceGoneError):
        there.update(data.names())
    for name, file in manifest.files.items():
        _check_file(data, name, file)
    others = {name for name in there if not name.startswith(".")} - manifest.files.keys()
    if others:  # a chat template among them would change the answers
        raise CheckpointError(
            f"{data.source(min(others)).name} is not a part of the pack; remove it, or add it to the checkpoint and "
            "pack again"
        )
    try:
        catalog = ExpertCatalog(_layers(data, manifest))
    except CheckpointError as error:
        raise CheckpointError(f"{folder.source(MANIFEST_NAME).name}: {error}; pack the model again") from error
    return Pack(folder, manifest, catalog)


def read_manifest(place: Place) -> Manifest:
    """Read the manifest of a packed model, and check it alone.

    Raises:
        CheckpointError: the manifest can't be read, is damaged, contradicts itself, or is of another version.
    """
    source = as_folder(place).source(MANIFEST_NAME)
    path = source.name
    content = read_json_object(source, "pack the model again")
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a packed model; pack the model again")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {content.get('version')!r} and this Greenroom reads version {VERSION}; "
            "pack the model again"
        )
    checksum = content.pop("checksum", None)
    if checksum != _self_checksum(content):
        raise CheckpointError(f"{path} is damaged: its checksum is wrong; pack the model again")
    del content["format"], content["version"]
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {where}: {first['msg']}; pack the model again") from error
    _check_records(path, manifest)
    return manifest


def named_folder(folder: Path) -> dict[str, frozenset[str]]:
    """Return the data folder that a manifest names, and the names of its files.

    The manifest may be damaged or of another version. The result is empty if nothing can be read.
    """
    try:
        content = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    data, files = content.get("data"), content.get("files")
    if not isinstance(data, str) or not re.fullmatch(DATA_FOLDER, data) or not isinstance(files, dict):
        return {}
    return {data: frozenset(name for name in FileName.valid(files) if not name.folder)}


def file_checksum(path: Path) -> str:
    """Return the XXH3 of a file's bytes, 64 bits in hexadecimal."""
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _self_checksum(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(_canonical(content))


def _layers(data: SourceFolder, manifest: Manifest) -> dict[int, LayerEntry]:
    layouts = manifest.expert_layouts()
    sources = {name: data.source(name) for name in manifest.files}
    return {
        index: LayerEntry(
            layouts[layer.layout],
            tuple(
                PackedRecord(
                    Extent(sources[record.file], record.offset, layouts[layer.layout].slot_bytes),
                    int(record.checksum, 16),
                )
                for record in layer.records
            ),
        )
        for index, layer in manifest.layers.items()
    }


def _check_file(data: SourceFolder, name: FileName, file: ManifestFile) -> None:
    try:
        source = data.source(name, is_own=True)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; pack the model again") from error
    try:
        with closing(source.open(is_direct=False)) as opened:
            nbytes = opened.identity.nbytes
            if nbytes != file.nbytes:
                raise CheckpointError(f"{source.name} is {nbytes} bytes long, not {file.nbytes}; {REMEDY}")
            if file.checksum is not None and _checksum(opened) != file.checksum:
                raise CheckpointError(f"{source.name} is not the file that was packed: its checksum differs; {REMEDY}")
    except SourceGoneError as error:
        raise CheckpointError(f"{source.name} is missing; {REMEDY}") from error
    except SourceError as error:
        raise error.naming(source.name) from error


def _checksum(opened: OpenSource) -> str:
    digest, nbytes = xxhash.xxh3_64(), opened.identity.nbytes
    for start in range(0, nbytes, CHUNK_BYTES):
        digest.update(read_bytes(opened, start, min(CHUNK_BYTES, nbytes - start)))
    return digest.hexdigest()


def _check_records(path: str, manifest: Manifest) -> None:
    for name in (FileName("config.json"), TRUNK_NAME):
        if name not in manifest.files:
            raise CheckpointError(f"{path} names no {name}; pack the model again")
    extents: dict[FileName, list[tuple[int, int]]] = {}
    for index, offset, nbytes, file in _record_extents(path, manifest):
        known = manifest.files.get(file)
        if known is None or not file.endswith(PACK_SUFFIX):
            raise CheckpointError(f"{path}: a record of layer {index} lies in {file!r}, not a file of records")
        if offset % PAGE_BYTES or offset + nbytes > known.nbytes:
            raise CheckpointError(
                f"{path}: a record of layer {index} lies at {offset} of the {known.nbytes} bytes of {file}, "
                "off the pages or past the end; pack the model again"
            )
        extents.setdefault(file, []).append((offset, offset + nbytes))
    for file, runs in extents.items():
        runs.sort()
        for (_, end), (start, _) in pairwise(runs):
            if start < end:
                raise CheckpointError(f"{path}: two records overlap at {start} of {file}; pack the model again")


def _record_extents(path: str, manifest: Manifest) -> Iterator[tuple[int, int, int, FileName]]:
    layouts = manifest.expert_layouts()
    for index, layer in manifest.layers.items():
        if layer.layout >= len(layouts):
            raise CheckpointError(f"{path}: layer {index} has layout {layer.layout} of {len(layouts)}")
        for record in layer.records:
            yield index, record.offset, layouts[layer.layout].slot_bytes, record.file
