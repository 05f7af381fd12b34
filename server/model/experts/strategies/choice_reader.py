"""ChoiceReader: copies a layer's choices to the host."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from server.kernels.backend import Rooms


class ChoiceReader:
    """Copies small tensors to the host on a stream of its own, so that the host waits for no later compute."""

    def __init__(self, device: torch.device):
        self._device = device
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
        self._ended: Any = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        self.rooms = Rooms()  # on the device, of one layer after the other
        self._host: dict[int, torch.Tensor] = {}  # pinned memory, by the place of a tensor
        self._found: list[torch.Tensor] = []

    def begin(self, *tensors: torch.Tensor) -> None:
        """Begin to copy contiguous tensors, after the compute that has been queued; they have to stay until ``end``."""
        self._found = [self._room(place, tensor) for place, tensor in enumerate(tensors)]
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            for host, tensor in zip(self._found, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            self._ended.record(self.stream)

    def _room(self, place: int, tensor: torch.Tensor) -> torch.Tensor:
        known = self._host.get(place)
        if known is None or known.dtype != tensor.dtype or known.numel() < tensor.numel():
            known = self._host[place] = torch.empty(tensor.numel(), dtype=tensor.dtype).pin_memory()
        return known[: tensor.numel()].view(tensor.shape)

    def in_stream(self) -> AbstractContextManager[Any]:
        """Return the context in which torch computes on this stream, which waits for the router alone."""
        context: AbstractContextManager[Any] = torch.cuda.stream(self.stream)
        return context

    def end(self) -> list[torch.Tensor]:
        """Wait for the copies alone; return what they brought, valid until the next ``begin``."""
        self._ended.synchronize()
        return self._found
