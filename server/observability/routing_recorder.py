"""Recorder of the routing of a running server."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from expert_store import ExpertCatalog, Phase, RoutingLogError, RoutingLogHeader, RoutingLogWriter

log = logging.getLogger(__name__)


class RoutingRecorder:
    """Writes every lease to a routing log. A full disk ends the recording, not the server.

    Raises:
        RoutingLogError: the file can't be opened.
    """

    def __init__(self, path: Path, model: str, catalog: ExpertCatalog):
        layers = {layer: len(entry.experts) for layer, entry in catalog.layers.items()}
        slot_bytes = {layer: entry.layout.slot_bytes for layer, entry in catalog.layers.items()}
        self._writer = RoutingLogWriter(path, RoutingLogHeader(model, layers, slot_bytes))
        self._is_open = True

    def record(self, layer: int, experts: Iterable[int], phase: Phase, *, is_passing: bool = False) -> None:
        """Add one lease; called from the engine's thread."""
        if self._is_open:
            try:
                self._writer.record(layer, experts, phase, is_passing=is_passing)
            except RoutingLogError as error:
                self._is_open = False
                log.error("%s; no more routing is recorded", error)  # noqa: TRY400  one line is enough

    def close(self) -> None:
        """Write what is still in memory."""
        if self._is_open:
            self._is_open = False
            try:
                self._writer.close()
            except RoutingLogError as error:
                log.error("%s", error)  # noqa: TRY400
