"""Writer of packed models: parallel, and resumable after any interruption."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
import xxhash

from expert_store.arena import Weights, slot_views
from expert_store.catalog import ExpertLayout, PackedRecord, TensorSource, checksum_seed
from expert_store.errors import CheckpointError, PackError
from expert_store.file_name import FileName
from expert_store.io.disk_bytes import disk_bytes
from expert_store.keys import ExpertKey
from expert_store.packed.fingerprint import source_fingerprint
from expert_store.packed.folder import PARTIAL_SUFFIX, DataFolder, PackFolder
from expert_store.packed.manifest import (
    CHUNK_BYTES,
    PACK_SUFFIX,
    TRUNK_NAME,
    UNCHANGED,
    VERSION,
    Manifest,
    ManifestFile,
    ManifestLayer,
    ManifestParameter,
    ManifestRecord,
    file_checksum,
    open_pack,
)
from expert_store.packed.safetensors_writer import DTYPE_NAMES, MadeTensors, write_at, write_safetensors
from expert_store.sources.base import Bytes, Source

MAX_FILE_BYTES = 4 << 30
SPARE_BYTES = 16 << 20  # for metadata of the file system
FULL = {errno.ENOSPC, errno.EDQUOT}
Report = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class PackedLayer:
    """The experts of one layer, and their layout in slots."""

    layout: ExpertLayout
    num_experts: int


@dataclass(frozen=True)
class PackSource:
    """A model to be packed.

    Args:
        model: the name that the pack is served under.
        weights: the experts' format.
        layers: the MoE layers by number.
        encode: reads an expert and returns its tensors in the layout of its layer; called from many threads.
        trunk: tensors of the trunk that are copied unchanged.
        made: the trunk's other tensors.
        trunk_format: the format of ``made``.
        files: small files by name, ``config.json`` among them.
        shards: the sources of the checkpoint's tensors.
    """

    model: str
    weights: str
    layers: Mapping[int, PackedLayer]
    encode: Callable[[ExpertKey], Weights]
    trunk: Sequence[TensorSource]
    files: Mapping[FileName, bytes]
    shards: Sequence[Source]
    made: Sequence[MadeTensors] = ()
    trunk_format: str = UNCHANGED

    @property
    def record_bytes(self) -> int:
        """Number of bytes of all records."""
        return sum(layer.num_experts * layer.layout.slot_bytes for layer in self.layers.values())

    @property
    def total_bytes(self) -> int:
        """Number of bytes that the pack takes on disk."""
        trunk = sum(source.extent.nbytes for source in self.trunk)
        trunk += sum(spec.nbytes for each in self.made for spec in each.specs)
        return self.record_bytes + trunk + sum(map(len, self.files.values()))


def write_pack(source: PackSource, out: Path, jobs: int, report: Report, max_file_bytes: int = MAX_FILE_BYTES) -> bool:
    """Pack a model into a folder; return False if it holds the same pack already, with every record intact.

    After an interruption the folder holds the old pack or the new one, and the next call resumes from there.

    Args:
        jobs: number of threads, each of which holds one expert in memory.
        report: called with the bytes of each record that is written or found to be written already.
        max_file_bytes: a new file is begun before one grows beyond it.

    Raises:
        PackError: the folder holds something else, another writer has locked it, the disk is full, or a file can't be
            written. If the disk is full, temporary files are removed.
        CheckpointError: the source can't be read.
    """
    try:
        writer = _Writer(source, out, jobs, report, max_file_bytes)
        with writer.folder.locked():
            try:
                return writer.run()
            except OSError as error:
                if error.errno in FULL:
                    writer.folder.tidy()
                raise
    except OSError as error:
        if error.errno in FULL:
            raise _disk_full(source, out) from error
        raise PackError(f"cannot pack into {out}: {error.filename or out}: {error.strerror}") from error


def _disk_full(source: PackSource, out: Path) -> PackError:
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    need, free = source.total_bytes + SPARE_BYTES, shutil.disk_usage(there).free
    return PackError(
        f"the disk of {out} is full: this pack takes {need / 1e9:.2f} GB beside what is there, {free / 1e9:.2f} GB "
        "are free; free some space and run the same command again"
    )


class _Place(NamedTuple):
    """The file and the extent of a record."""

    file: FileName
    offset: int
    nbytes: int


class _Writer:
    """One run that packs a model into a folder, which is locked meanwhile."""

    def __init__(self, source: PackSource, out: Path, jobs: int, report: Report, max_file_bytes: int):
        self._source, self._jobs, self._report = source, jobs, report
        self._places = _place_records(source.layers, max_file_bytes)
        self._layouts = list(dict.fromkeys(layer.layout for layer in source.layers.values()))
        self._fingerprint = source_fingerprint(source.files, source.shards)
        plan = [
            VERSION,
            self._fingerprint,
            source.model,
            source.weights,
            [_describe(layout) for layout in self._layouts],
            [[key.layer, key.expert, *place] for key, place in self._places.items()],
        ]
        if source.trunk_format != UNCHANGED:
            plan.append([source.trunk_format, [spec.name for each in source.made for spec in each.specs]])
        self._identity = hashlib.blake2b(json.dumps(plan).encode(), digest_size=8).hexdigest()
        files = [TRUNK_NAME, *(place.file for place in self._places.values()), *source.files]
        self.folder = PackFolder(out, DataFolder(self._identity, frozenset(files)))

    def run(self) -> bool:
        if self._is_done():
            self.folder.tidy()
            return False
        partial = self.folder.partial()
        self._check_space(partial)
        checksums = self._write_records(partial)
        names = self._write_others(partial)
        if source_fingerprint(self._source.files, self._source.shards) != self._fingerprint:
            raise PackError(f"the checkpoint of {self._source.model} changed while it was packed; run it again")
        self.folder.publish(partial, self._manifest(partial, checksums, names))
        return True

    def _is_done(self) -> bool:
        """Return True if the folder holds this pack already, with every record intact."""
        named = self.folder.manifest
        if named is None or named.data.partition("-")[0] != self._identity:
            return False
        try:
            pack = open_pack(self.folder.path)
        except CheckpointError:
            return False
        with _RecordFiles(self.folder.path / pack.manifest.data, self._places, os.O_RDONLY) as files:

            def is_intact(key: ExpertKey) -> bool:
                record = pack.catalog.recipe(key)
                assert isinstance(record, PackedRecord)
                return files.checksum(key) == record.checksum

            return all(self._map(is_intact))

    def _check_space(self, partial: Path) -> None:
        there = sum(map(disk_bytes, partial.iterdir()))
        if shutil.disk_usage(partial).free + there < self._source.total_bytes + SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))

    def _write_records(self, partial: Path) -> dict[ExpertKey, int]:
        with self.folder.journal as journal, _RecordFiles(partial, self._places, os.O_RDWR) as files:

            def write(key: ExpertKey) -> int:
                checksum = journal.finished.get(key)
                if checksum is None or files.checksum(key) != checksum:
                    checksum = files.write(key, self._record(key))
                    journal.add(key, checksum)
                return checksum

            return dict(zip(self._places, self._map(write), strict=True))

    def _record(self, key: ExpertKey) -> Bytes:
        layout = self._source.layers[key.layer].layout
        record = np.zeros(layout.slot_bytes, dtype=np.uint8)
        tensors = self._source.encode(key)
        for name, view in slot_views(layout, torch.from_numpy(record)).items():
            view.copy_(tensors[name])
        return record

    def _map(self, work: Callable[[ExpertKey], T]) -> list[T]:
        """Call ``work`` for every expert, on several threads, and report each that is done."""
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="pack")
        futures = {pool.submit(work, key): place.nbytes for key, place in self._places.items()}
        try:
            for future in as_completed(futures):
                future.result()
                self._report(futures[future])
        finally:
            pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]

    def _write_others(self, partial: Path) -> list[FileName]:
        """Write the trunk and the small files; return their names."""
        write_safetensors(partial / TRUNK_NAME, self._source.trunk, self._source.made)
        for name, content in self._source.files.items():
            (partial / name).write_bytes(content)
        return [TRUNK_NAME, *self._source.files]

    def _manifest(self, partial: Path, checksums: Mapping[ExpertKey, int], others: Sequence[FileName]) -> Manifest:
        def record(key: ExpertKey) -> ManifestRecord:
            return ManifestRecord(self._places[key].file, self._places[key].offset, f"{checksums[key]:016x}")

        def file(name: str, checksum: str | None) -> ManifestFile:
            return ManifestFile((partial / name).stat().st_size, checksum)

        files = {name: file(name, None) for name in sorted({place.file for place in self._places.values()})}
        files |= {name: file(name, file_checksum(partial / name)) for name in others}
        return Manifest(
            model=self._source.model,
            weights=self._source.weights,
            trunk=self._source.trunk_format,
            source=self._fingerprint,
            data=FileName(partial.name.removesuffix(PARTIAL_SUFFIX)),
            layouts=tuple(_describe(layout) for layout in self._layouts),
            layers={
                index: ManifestLayer(
                    layout=self._layouts.index(layer.layout),
                    records=tuple(record(ExpertKey(index, expert)) for expert in range(layer.num_experts)),
                )
                for index, layer in self._source.layers.items()
            },
            files=files,
        )


class _RecordFiles:
    """The open files of records."""

    def __init__(self, folder: Path, places: Mapping[ExpertKey, _Place], flags: int):
        self._folder, self._places, self._flags = folder, places, flags
        self._files: dict[str, int] = {}

    def __enter__(self) -> Self:
        sizes: dict[str, int] = {}
        for place in self._places.values():
            sizes[place.file] = max(sizes.get(place.file, 0), place.offset + place.nbytes)
        with ExitStack() as stack:
            for name, nbytes in sizes.items():
                create = os.O_CREAT if self._flags & os.O_RDWR else 0
                file = os.open(self._folder / name, self._flags | create | os.O_CLOEXEC, 0o644)
                stack.callback(os.close, file)
                if create:
                    os.ftruncate(file, nbytes)
                self._files[name] = file
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def checksum(self, key: ExpertKey) -> int:
        """Return the checksum of the bytes in a record's place."""
        place = self._places[key]
        digest, end = xxhash.xxh3_64(seed=checksum_seed(key)), place.offset + place.nbytes
        for start in range(place.offset, end, CHUNK_BYTES):
            digest.update(os.pread(self._files[place.file], min(CHUNK_BYTES, end - start), start))
        return digest.intdigest()

    def write(self, key: ExpertKey, record: Bytes) -> int:
        """Write a record to its place, and return its checksum."""
        place = self._places[key]
        write_at(self._files[place.file], record, place.offset)
        return xxhash.xxh3_64_intdigest(record.data, seed=checksum_seed(key))


def _place_records(layers: Mapping[int, PackedLayer], max_file_bytes: int) -> dict[ExpertKey, _Place]:
    places, number, end = {}, 0, 0
    for index, layer in sorted(layers.items()):
        nbytes = layer.layout.slot_bytes
        for expert in range(layer.num_experts):
            if end and end + nbytes > max_file_bytes:
                number, end = number + 1, 0
            places[ExpertKey(index, expert)] = _Place(FileName(f"experts-{number:05d}{PACK_SUFFIX}"), end, nbytes)
            end += nbytes
    return places


def _describe(layout: ExpertLayout) -> tuple[ManifestParameter, ...]:
    return tuple(ManifestParameter(name, DTYPE_NAMES[dtype], shape) for name, dtype, shape in layout.parameters)
