"""The cache of a model's experts as one record each, on a disk beside the model's own files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from expert_store import ExpertCatalog, ExpertStore, FileSource
from expert_store.disk_cache.expert_records import RecordSource, with_records
from expert_store.disk_cache.fill import MAX_CHUNK_BYTES, Fill, FillProgress, Span
from server.byte_sizes import format_bytes
from server.loading.remote_models import open_cache
from server.model.trunk_loader import AnyTrunk
from server.settings import ServeSettings, SettingsError

log = logging.getLogger(__name__)


def use_records(trunk: AnyTrunk, name: str, settings: ServeSettings) -> None:
    """Have the experts of a model on a disk read from a cache of records, where the settings want one.

    Args:
        name: of the model.

    Raises:
        CheckpointError: the folder of the cache can't be used.
        SettingsError: it has the model, or nothing can be written to it.
    """
    folder = settings.repack_cache
    if folder is None:
        return
    _refuse_own_folder(folder, trunk.catalog)
    cache = open_cache(folder, settings.repack_cache_size)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"--repack-cache {folder}: nothing can be written there; give a folder of your own")
    found = with_records(trunk.catalog, name, cache)
    if found is None:
        log.info("each expert of %s is one read already; nothing is kept in %s", name, folder)
    else:
        trunk.catalog, _ = found


def _refuse_own_folder(folder: Path, catalog: ExpertCatalog) -> None:
    paths = [source.path for source in catalog.sources if isinstance(source, FileSource)]
    if folder.resolve() in {each for path in paths for each in (path.resolve().parent, path.parent.resolve())}:
        raise SettingsError(f"--repack-cache {folder} is the folder of the model; give a folder of its own")


def make_repack_fill(store: ExpertStore) -> Fill | None:
    """Return what writes the records that the cache lacks; None without such a cache."""
    records = next((source for source in store.catalog.sources if isinstance(source, RecordSource)), None)
    if records is None:
        return None
    opened, folder = records.opened, records.cache.folder
    if opened.file is not None:  # else the disk fails, which is in the log
        records.cache.make_room(opened.identity.nbytes - opened.file.log.num_bytes)

    def tell(progress: FillProgress) -> None:
        log.info("experts as one record each in %s: %s", folder, describe(progress))

    return Fill(
        [records],
        lambda: _wanted_first(store, records),
        tell=tell,
        has_all=True,
        min_chunk_bytes=MAX_CHUNK_BYTES,  # a disk reads it in a moment
        name=f"repacking to {folder}",
    )


def describe(progress: FillProgress) -> str:
    """Return how many records are written, in one line."""
    rest = "" if progress.reason is None else f"; the rest waits: {progress.reason}"
    return f"{format_bytes(progress.held_bytes)} of {format_bytes(progress.total_bytes)}{rest}"


def _wanted_first(store: ExpertStore, records: RecordSource) -> Iterator[Span]:
    """Yield the records of experts that are not in memory before the others, by how many tokens chose them so far."""
    rows = {layer: row for row, layer in enumerate(store.catalog.layers)}
    tokens, absent = store.statistics().tokens, frozenset(store.absent())
    spans = records.source.layout.spans
    for key in sorted(spans, key=lambda key: (key not in absent, -tokens[rows[key.layer], key.expert])):
        yield records, *spans[key]
