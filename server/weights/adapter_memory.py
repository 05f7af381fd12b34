"""AdapterMemory: which adapters are in memory, on behalf of whom, and whose turn it is to be loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from expert_store import ExpertLoadError, ExpertStoreError
from server.engine.interface import GenerationFailedError, RequestRefusedError
from server.model.adapters.errors import AdapterError
from server.model.lora_adapter import LoraAdapter
from server.weights.adapter_store import AdapterStore
from server.weights.adapter_version import AdapterVersion

log = logging.getLogger(__name__)

Versions = tuple[AdapterVersion, ...]  # of one request

NUM_LOADERS = 2
PATIENCE_SECONDS = 2.0  # a request that waits longer for room goes before new requests of adapters in use


@dataclass(eq=False)
class _Turn:
    """Waiting requests for the same adapters; once ``has_begun``, they are being loaded, or kept for a request."""

    versions: Versions
    since: float
    has_begun: bool = False


class AdapterMemory:
    """Loads adapters for waiting requests, and holds them for running ones. Thread-safe.

    Requests whose adapters are not in memory take turns, first come, first served. A turn begins when all its adapters
    find room beside those in use, and lasts until a sequence takes them, so that they can't be evicted before.

    Args:
        wake: called when an adapter was loaded, or could not be.
        on_drop: called with the ``variant`` of an adapter that no sequence uses or will use, perhaps more than once.
    """

    def __init__(
        self,
        store: AdapterStore,
        wake: Callable[[], None],
        on_drop: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.store = store
        self._wake, self._on_drop, self._clock = wake, on_drop, clock
        self._lock = threading.RLock()  # guards everything below and the versions; taken before the store's lock
        self._turns: dict[Versions, _Turn] = {}  # in their order
        self._num_wanted: Counter[Versions] = Counter()  # sequences that have begun
        self._open: set[AdapterVersion] = set()
        self._used: set[AdapterVersion] = set()  # with ``num_uses``
        self._loaders = ThreadPoolExecutor(NUM_LOADERS, thread_name_prefix="adapter-loader")
        self._is_closed = False
        self.num_failures = 0  # adapters that could not be loaded

    def begin(self, versions: Versions) -> None:
        """Count a sequence that uses some adapters.

        Raises:
            RequestRefusedError: they do not fit in memory together.
        """
        num_pages = sum(version.num_pages for version in versions)
        if num_pages > self.store.num_slots:
            raise RequestRefusedError(
                f"these adapters take {num_pages} pages of memory together, but --adapter-memory holds "
                f"{self.store.num_slots}; use fewer of them",
                "adapters",
            )
        with self._lock:
            self._num_wanted[versions] += 1
            for version in versions:
                version.num_sequences += 1
                version.num_total += 1

    def end(self, versions: Versions) -> None:
        """End the use that ``begin`` counted; an adapter that was unloaded meanwhile goes with its last sequence."""
        with self._lock:
            self._num_wanted[versions] -= 1
            if not self._num_wanted[versions]:
                del self._num_wanted[versions]
                self._end_turn(versions)
            for version in versions:
                version.num_sequences -= 1
                if not version.num_sequences:
                    version.error = None
                    self._drop_if_retired(version)
            self._begin_turns()

    def acquire(self, versions: Versions) -> bool:
        """Hold adapters for a running sequence; return False while they are being loaded, or wait for room.

        Raises:
            GenerationFailedError: one can't be loaded; the next call tries again.
        """
        with self._lock:
            for version in versions:
                if version.error is not None:
                    error, version.error = version.error, None
                    raise GenerationFailedError(
                        f"the adapter {version.name!r} can't be loaded; see the server's log"
                    ) from error
            turn = self._turns.get(versions)
            if turn is None:
                if self._must_wait(versions):
                    return False
                if not all(version.lora for version in versions):
                    turn = self._turns[versions] = _Turn(versions, self._clock())
                    self._begin_turns()
            if not all(version.lora for version in versions) or (turn is not None and not turn.has_begun):
                return False
            for version in versions:
                self._use(version)
            self._end_turn(versions)
            return True

    def release(self, versions: Versions) -> None:
        """End the hold of ``acquire``."""
        with self._lock:
            for version in versions:
                self._end_use(version)
            self._begin_turns()

    def lora(self, version: AdapterVersion) -> LoraAdapter:
        """Return an adapter that is held."""
        assert version.lora is not None
        return version.lora

    def retire(self, version: AdapterVersion) -> None:
        """Drop an adapter as soon as no sequence uses it."""
        with self._lock:
            version.is_retired = True
            self._drop_if_retired(version)

    def close(self) -> None:
        """Stop loading; all sequences have ended."""
        with self._lock:
            self._is_closed = True
        self.store.close()  # threads that wait for pages get an error
        self._loaders.shutdown(wait=True, cancel_futures=True)

    def _must_wait(self, versions: Versions) -> bool:
        """Return True if another request has waited for room so long that no new one may use adapters before it."""
        first = next((turn for turn in self._turns.values() if not turn.has_begun), None)
        return first is not None and first.versions != versions and self._clock() - first.since > PATIENCE_SECONDS

    def _begin_turns(self) -> None:
        """Begin the next turns while there is room."""
        if self._is_closed:
            return
        for turn in list(self._turns.values()):
            if turn.has_begun:
                continue
            used = sum(version.num_pages for version in self._used)
            needed = sum(version.num_pages for version in turn.versions if version not in self._used)
            if used + needed > self.store.num_slots:
                return
            turn.has_begun = True
            for version in turn.versions:
                self._use(version)
                if version.lora is None and not version.is_loading:
                    self._begin_load(version)

    def _end_turn(self, versions: Versions) -> None:
        turn = self._turns.pop(versions, None)
        if turn is not None and turn.has_begun:
            for version in turn.versions:
                self._end_use(version)

    def _use(self, version: AdapterVersion) -> None:
        version.num_uses += 1
        self._used.add(version)

    def _end_use(self, version: AdapterVersion) -> None:
        version.num_uses -= 1
        if not version.num_uses and not version.is_loading:
            self._let_go(version)

    def _let_go(self, version: AdapterVersion) -> None:
        """Let the pages of an adapter that nobody uses be evicted."""
        version.lora = None
        self._used.discard(version)
        self.store.release(version)
        self._drop_if_retired(version)

    def _drop_if_retired(self, version: AdapterVersion) -> None:
        if version.is_retired and not (version.num_sequences or version.num_uses or version.is_loading):
            self._close_file(version)
            self._on_drop(version.variant)

    def _close_file(self, version: AdapterVersion) -> None:
        if version in self._open:
            self._open.remove(version)
            version.is_open = False
            self.store.close_file(version)

    def _begin_load(self, version: AdapterVersion) -> None:
        """Take an adapter whose pages are in memory at once; otherwise let a thread read them."""
        if version.is_open and self.store.try_lease(version):
            version.lora = self.store.wait(version)
            return
        version.is_loading = True
        self._loaders.submit(self._load, version)

    def _load(self, version: AdapterVersion) -> None:
        """Load an adapter; in a thread of its own."""
        lora: LoraAdapter | None = None
        error: Exception | None = None
        try:
            if not version.is_open:
                self.store.open(version)
                with self._lock:
                    version.is_open = True
                    self._open.add(version)
            if version.lease is None:
                self.store.try_lease(version)
            lora = self.store.wait(version)
        except ExpertLoadError as caught:
            error = caught.__cause__ if isinstance(caught.__cause__, Exception) else caught
        except (ExpertStoreError, AdapterError, OSError, ValueError) as caught:
            error = caught
        except Exception as caught:  # a sequence waits for the outcome, whatever it is
            log.exception("the adapter %s could not be loaded", version.name)
            error = caught
        with self._lock:
            version.is_loading = False
            if error is None:
                version.lora = lora
            else:
                self._fail(version, error)
            if not version.num_uses:
                self._let_go(version)
            for idle in self.store.idle(self._open):
                if not (idle.num_uses or idle.is_loading):
                    self._close_file(idle)
            self._begin_turns()
        self._wake()

    def _fail(self, version: AdapterVersion, error: Exception) -> None:
        """End the turns of an adapter that can't be loaded. Its file is opened again next time."""
        log.error("the adapter %s could not be loaded: %s", version.name, error)
        self.num_failures += 1
        self.store.release(version)
        version.error = error if version.num_sequences else None
        for versions in list(self._turns):
            if version in versions:
                self._end_turn(versions)
        self._close_file(version)
