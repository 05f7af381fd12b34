"""RoutedRows: which sequence each row of a layer's experts belongs to, and which tokens no expert took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from server.model.greenroom_moe.mixture import RoutedExperts
from server.model.routers.base import Router
from server.model.routers.switch import SwitchRouter
from server.model.routers.top_k import TopKRouter

IntArray = npt.NDArray[np.int64]


class RoutedRows:
    """Observes the routers of an encoder in one step after the other.

    Args:
        model: its mixtures are ``RoutedExperts``.
        layers: the number of each module of experts.
    """

    def __init__(self, model: torch.nn.Module, layers: Mapping[Any, int]):
        self._lengths: list[int] = []
        self._routers: list[Router] = []
        self._by_token: set[int] = set()  # layers whose rows are the tokens, those without an expert too
        self._counts: dict[int, list[int]] = {}  # by layer, rows of each sequence
        self._dropped: dict[int, list[torch.Tensor]] = {}  # by layer, bool (tokens,) of each call
        for module in model.modules():
            if isinstance(module, RoutedExperts):
                self._observe(module.router, layers[module.experts])

    @property
    def depends_on_company(self) -> bool:
        """True if what a router does with a sequence depends on the others of the step."""
        return any(isinstance(router, SwitchRouter) and router.may_drop for router in self._routers)

    def begin(self, lengths: Sequence[int]) -> None:
        """Begin a step with sequences of so many tokens."""
        self._lengths = list(lengths)
        self._counts.clear()
        self._dropped.clear()

    def owners(self, layer: int) -> IntArray:
        """Return the index of the sequence of each of a layer's rows."""
        counts = self._lengths if layer in self._by_token else self._counts[layer]
        return np.repeat(np.arange(len(self._lengths)), counts)

    def num_dropped(self) -> list[int]:
        """Return for each sequence its tokens that no expert took, once for each layer."""
        totals = np.zeros(len(self._lengths), dtype=np.int64)
        owners = np.repeat(np.arange(len(self._lengths)), self._lengths)
        for calls in self._dropped.values():
            dropped = torch.cat(calls).cpu().numpy()
            totals += np.bincount(owners, weights=dropped, minlength=len(totals)).astype(np.int64)
        return [int(total) for total in totals]

    def _observe(self, router: Router, layer: int) -> None:
        self._routers.append(router)
        if isinstance(router, TopKRouter | SwitchRouter):
            self._by_token.add(layer)

        def note(_router: Any, _given: Any, dispatch: Any) -> None:
            self._counts.setdefault(layer, []).append(len(dispatch.experts))
            self._dropped.setdefault(layer, []).append(dispatch.dropped)

        router.register_forward_hook(note)
