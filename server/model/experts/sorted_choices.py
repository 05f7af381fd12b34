"""Sorts the choices of a layer by expert."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from expert_store import ExpertKey

IntArray = npt.NDArray[np.int64]

FEW_CHOICES = 64  # these are sorted sooner without numpy, whose calls take long with cold caches


def sort_choices(chosen: IntArray, keys: tuple[ExpertKey, ...]) -> tuple[IntArray, dict[ExpertKey, tuple[int, int]]]:
    """Sort choices by expert; return their order and each expert's range in it (``SortedRows``).

    Args:
        chosen: ``(tokens, k)``, the number of an expert each; numbers from ``len(keys)`` on are not experts.
        keys: the layer's experts.
    """
    choices = chosen.ravel()
    if len(choices) <= FEW_CHOICES:
        return _sort_few(choices.tolist(), keys)
    order = choices.astype(np.int16).argsort(kind="stable")  # numpy sorts int16 by radix, several times as fast
    counts = np.bincount(choices, minlength=len(keys))[: len(keys)]
    experts = counts.nonzero()[0]
    spans, start = {}, 0
    for expert, end in zip(experts.tolist(), counts[experts].cumsum().tolist(), strict=True):
        spans[keys[expert]] = (start, end)
        start = end
    return order, spans


def _sort_few(choices: list[int], keys: tuple[ExpertKey, ...]) -> tuple[IntArray, dict[ExpertKey, tuple[int, int]]]:
    order = sorted(range(len(choices)), key=choices.__getitem__)
    spans: dict[ExpertKey, tuple[int, int]] = {}
    for place, choice in enumerate(order):
        if choices[choice] >= len(keys):
            break
        key = keys[choices[choice]]
        spans[key] = (spans[key][0] if key in spans else place, place + 1)
    return np.array(order, np.int64), spans
