"""Recording of routing while the server runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from expert_store import ExpertCatalog, Phase, TraceError, TraceHeader, TraceWriter

log = logging.getLogger(__name__)


class RoutingTrace:
    """Writes every lease to a file. A full disk ends the recording, not the server.

    Raises:
        TraceError: the file can't be opened.
    """

    def __init__(self, path: Path, model: str, catalog: ExpertCatalog):
        layers = {layer: len(entry.experts) for layer, entry in catalog.layers.items()}
        slot_bytes = {layer: entry.layout.slot_bytes for layer, entry in catalog.layers.items()}
        self._writer = TraceWriter(path, TraceHeader(model, layers, slot_bytes))
        self._is_open = True

    def record(self, layer: int, experts: Iterable[int], phase: Phase) -> None:
        """Add one lease; from the engine's thread."""
        if self._is_open:
            try:
                self._writer.record(layer, experts, phase)
            except TraceError as error:
                self._is_open = False
                log.error("%s; no more routing is recorded", error)  # noqa: TRY400  it is said in one line

    def close(self) -> None:
        """Write what is still in memory."""
        if self._is_open:
            self._is_open = False
            try:
                self._writer.close()
            except TraceError as error:
                log.error("%s", error)  # noqa: TRY400
