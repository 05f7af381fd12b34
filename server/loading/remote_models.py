"""The cache on a disk in front of a model elsewhere, and its completion."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from expert_store import CheckpointError, ExpertStore, extents, is_on_disk
from expert_store.disk_cache.cached_source import CachedFolder, CachedSource, is_versioned
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.disk_cache.expert_spans import ExpertSpans
from expert_store.disk_cache.fill import Fill, FillProgress, Span
from expert_store.disk_cache.places import caches
from server.byte_sizes import GIB, format_bytes
from server.model.checkpoint.hub_listing import Listing, partial_folder, remember
from server.model.checkpoint.remote.hub_folder import HubFile, HubFolder
from server.model.checkpoint.remote.place import RemotePlace
from server.setting_values import Budget
from server.settings import ServeSettings, SettingsError

log = logging.getLogger(__name__)

KEPT_FREE_SHARE, KEPT_FREE_BYTES = 1 / 20, 4 * GIB  # of a disk, the smaller of both
LEAST_MINUTES = 2  # that are not told in seconds


def with_cache(place: Path | RemotePlace, settings: ServeSettings) -> Path | RemotePlace:
    """Return a model's place with a cache on a disk in front of it, if there is to be one.

    Raises:
        CheckpointError: the folder of the cache can't be used.
        SettingsError: the cache for a model on a disk is asked for.
    """
    if isinstance(place, Path):
        return place
    if settings.repack_cache is not None:
        raise SettingsError(
            f"--repack-cache is for a model on a disk, and {place.folder.name} is elsewhere; give --disk-cache instead"
        )
    cache = _cache(place, settings)
    if cache is None:
        return place
    if isinstance(place.folder, HubFolder):
        try:
            remember(place.folder.listing)
        except OSError as error:
            log.warning("a start without network will not find %s: %s", place.folder.name, error)
    return replace(place, folder=CachedFolder(place.folder, cache))


def _cache(place: RemotePlace, settings: ServeSettings) -> DiskCache | None:
    folder = settings.disk_cache
    if folder is not None:
        return open_cache(folder, settings.disk_cache_size)
    if not isinstance(place.folder, HubFolder) or settings.complete_download == "off":
        return None
    listing = place.folder.listing
    folder = partial_folder(listing.model)
    try:
        cache = DiskCache(folder)
    except CheckpointError as error:  # the hub's cache may be that of several users
        log.warning("what is read of %s is not kept: %s", listing.model, error)
        return None
    return cache if listing.missing_bytes - _held_bytes(place.folder, cache) <= room_on_disk(folder) else None


def open_cache(folder: Path, budget: Budget) -> DiskCache:
    """Open a cache of a size.

    Raises:
        CheckpointError: its folder can't be used.
    """
    free = room_on_disk(folder)
    size = budget.resolve(0, 0) or None
    cache = DiskCache(folder, size)
    if size is None:
        cache.max_bytes = cache.stored_bytes + free
    return cache


def _held_bytes(folder: HubFolder, cache: DiskCache) -> int:
    """Return the bytes of a model that were read into a cache, but are not in the hub's."""
    names = [folder.remote_file(path).name for path in folder.listing.weights if folder.listing.cached(path) is None]
    identities = [identity for name in names if (identity := cache.remembered.identity(name)) is not None]
    return sum(file.log.num_bytes for file in map(cache.file, identities) if file is not None)


def make_fill(store: ExpertStore, settings: ServeSettings, on_complete: Callable[[], None]) -> Fill | None:
    """Return what completes a model's files on the disk; None if they are there, or are not to be.

    Args:
        on_complete: called once they are complete.

    Raises:
        SettingsError: the download is to be completed, and there is no room for it, or its files have no versions.
    """
    if is_on_disk(store.catalog):
        return None
    found = caches(store.catalog)
    if not found:
        uncached = next((each for each in store.catalog.sources if isinstance(each, HubFile)), None)
        if uncached is not None and settings.complete_download != "off":
            _warn_of_rereads(uncached.listing)
        else:
            log.info("first answer possible; experts are read when requests need them, and are not kept on a disk")
        return None
    (cache,) = found
    spans = ExpertSpans(store.catalog)
    spans.keep_the_rest(cache)
    if settings.complete_download == "off":
        share = spans.held_bytes / max(1, spans.total_bytes)
        log.info(
            "experts %.0f %% on the disk, first answer possible; others are read when requests need them", 100 * share
        )
        return None
    sources = [source for source in cache.sources if isinstance(source, CachedSource)]
    if not _can_be_kept(sources, settings):
        return None
    missing = sum(
        opened.identity.nbytes - opened.file.log.num_bytes
        for opened in (source.opened for source in sources)
        if opened.file is not None
    )
    if not cache.has_room(missing):
        needed = f"{format_bytes(missing)} more, for which {cache.folder} has no room"
        if settings.complete_download == "on":
            raise SettingsError(f"--complete-download needs {needed}; raise --disk-cache-size, or leave it out")
        log.info("the download is not completed: it needs %s", needed)
        return None

    def end(fill: Fill) -> None:
        _keep(fill)
        on_complete()

    return Fill(sources, lambda: _hottest_first(store), end, lambda progress: log.info(describe(progress, spans)))


def describe(progress: FillProgress, spans: ExpertSpans) -> str:
    """Return how much of a model is on the disk, in one line."""
    held = spans.held_bytes
    trunk, unit = format_bytes(progress.total_bytes - spans.total_bytes).split()
    held_trunk = format_bytes(progress.held_bytes - held).removesuffix(f" {unit}")
    share = 100 * held / max(1, spans.total_bytes)
    left = "" if progress.seconds_left is None else f", the rest in {_duration(progress.seconds_left)}"
    if progress.reason is not None:
        left = f", the rest waits: {progress.reason}"
    return f"trunk {held_trunk} of {trunk} {unit}, experts {share:.0f} %, first answer possible{left}"


def _can_be_kept(sources: Sequence[CachedSource], settings: ServeSettings) -> bool:
    """Return True if all files of a model can be kept on the disk; else warn with the reason.

    Raises:
        SettingsError: they can't, and the download is to be completed.
    """
    unknown = [source for source in sources if not is_versioned(source.opened.identity)]
    if not unknown:
        return True
    named = f"{unknown[0].name}{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}"
    reason = f"its server tells neither an ETag nor Last-Modified of {named}, so that another content could not be told"
    if settings.complete_download == "on":
        raise SettingsError(f"--complete-download can't be: {reason}; leave it out, or give another server")
    log.warning("the download is not kept on the disk, and each start reads it again: %s", reason)
    return False


def _warn_of_rereads(listing: Listing) -> None:
    """Warn that a disk has no room for a model of the hub."""
    missing, free = listing.missing_bytes, max(0, room_on_disk(partial_folder(listing.model)))
    if missing <= free:  # another reason was told
        return
    text = f"{listing.model} is read again and again, as its {format_bytes(missing)} do not fit on the disk"
    log.warning("%s with %s free; --disk-cache keeps a part of it", text, format_bytes(free))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < LEAST_MINUTES else f"{minutes // 60} h {minutes % 60:02} min"


def _hottest_first(store: ExpertStore) -> Iterator[Span]:
    """Yield where experts are: those that most tokens chose so far first, then layer by layer."""
    counts = store.statistics().tokens
    keyed = [
        (-int(tokens), layer, number, recipe)
        for row, (layer, entry) in zip(counts, store.catalog.layers.items(), strict=True)
        for number, (tokens, recipe) in enumerate(zip(row, entry.experts, strict=True))
    ]
    for *_, recipe in sorted(keyed, key=lambda each: each[:3]):
        for extent in extents(recipe):
            if isinstance(extent.source, CachedSource):
                yield extent.source, extent.offset, extent.offset + extent.nbytes


def _keep(fill: Fill) -> None:
    """Move complete files of a hub model to where its own library looks for them."""
    for source in fill.sources:
        if isinstance(source.source, HubFile):
            file = source.opened.file
            assert file is not None
            try:
                source.source.keep(file.path, source.opened.identity)
            except (CheckpointError, OSError) as error:
                log.warning("%s stays where it is, and is not in the hub's cache: %s", file.path, error)
    log.info("the model is complete on the disk")


def room_on_disk(folder: Path) -> int:
    """Return the bytes that a cache may take of the disk of a folder, which need not be there."""
    disk = shutil.disk_usage(next(each for each in (folder, *folder.absolute().parents) if each.is_dir()))
    return disk.free - min(int(disk.total * KEPT_FREE_SHARE), KEPT_FREE_BYTES)
