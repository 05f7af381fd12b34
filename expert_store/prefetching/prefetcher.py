"""Prefetcher: requests the next layer's experts while this layer's are read and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np

from expert_store.keys import ExpertKey
from expert_store.prefetching.coactivation import CoactivationPredictor, IntArray
from expert_store.prefetching.governor import Governor

PrefetchMode = Literal["auto", "off", "gate", "coactivation"]
Predictor = Literal["gate", "coactivation"]
PREDICTORS: tuple[Predictor, ...] = ("gate", "coactivation")
NUM_RANKS = 8  # parts of a prediction, likeliest first, each with a precision of its own
ALL_RANKS = (1 << NUM_RANKS) - 1
MIN_PRECISION = 0.7  # ranks below it are not requested; a read in vain also evicts
PRECISION_WINDOW = 64  # predictions, about, over which the precision of a rank is averaged
PRIOR_PREDICTIONS = 4  # correct predictions that a rank begins with
SAMPLING_INTERVAL = 32  # steps; while switched off, two of so many still learn and predict, to measure recall

# From the input of a layer's experts to the numbers of experts of the next layer, ``(tokens, k)``, likeliest first.
Gate = Callable[[Any], IntArray]

# From a layer and its experts by number, ``(tokens, k)``, to the distinct ones, first choices before second ones.
# A number beyond the last expert means no expert.
KeysOf = Callable[[int, IntArray], list[ExpertKey]]


class ReadAhead(Protocol):
    """Asks the store for the next layer's experts, once a layer's own reads are under way."""

    def observe(self, layer: int, top_k_index: IntArray, gate_input: Any, keys_of: KeysOf | None = None) -> None:
        """Learn what a layer has chosen."""

    def request(self) -> None:
        """Ask for experts of the next layer; called between experts."""


class PrefetchTarget(Protocol):
    """The part of a store that a prefetcher needs."""

    def prefetch(self, keys: Sequence[ExpertKey]) -> int:
        """Start reads of a layer's experts that are neither resident nor loading; return how many were started."""


@dataclass(frozen=True)
class PrefetchStatistics:
    """Counters since the start, and the results of the last trial.

    ``recall`` is the part of a layer's chosen experts that were predicted from the layer before, with about as many
    predictions as choices; ``predicted`` less ``correct`` were in vain.
    """

    is_active: bool
    predicted: dict[Predictor, int]  # experts by predictor
    correct: dict[Predictor, int]
    recall: dict[int, float]  # by layer, without layers that were never predicted
    seconds_with: float | None  # per decode step
    seconds_without: float | None


@dataclass(frozen=True)
class _Prediction:
    predictor: Predictor
    layer: int
    experts: list[ExpertKey]  # likeliest first
    worthwhile: list[ExpertKey]  # those of ``experts`` that are still worth a request


class _RankPrecision:
    """Part of the predictions for a layer that are correct, by rank; taken as correct at first."""

    def __init__(self) -> None:
        self._mean = [1.0] * NUM_RANKS
        self._num = [PRIOR_PREDICTIONS] * NUM_RANKS
        self.asked = self._asked()

    def learn(self, experts: Sequence[ExpertKey], chosen: set[ExpertKey]) -> None:
        bounds = [-(-rank * len(experts) // NUM_RANKS) for rank in range(NUM_RANKS + 1)]
        for rank, (start, end) in enumerate(pairwise(bounds)):
            num, mean = self._num[rank], self._mean[rank]
            for expert in experts[start:end]:
                num = min(num + 1, PRECISION_WINDOW)
                mean += ((expert in chosen) - mean) / num
            self._num[rank], self._mean[rank] = num, mean
        self.asked = self._asked()

    def worthwhile(self, experts: Sequence[ExpertKey]) -> list[ExpertKey]:
        if self.asked == ALL_RANKS:
            return list(experts)
        return [expert for place, expert in enumerate(experts) if self.asked >> (place * NUM_RANKS // len(experts)) & 1]

    def _asked(self) -> int:
        """The ranks that are requested: bit i is set if rank i is."""
        return sum((mean >= MIN_PRECISION) << rank for rank, mean in enumerate(self._mean))


class Prefetcher:
    """Predicts the next layer's experts and prefetches them in decode steps, while that makes steps faster.

    Predictions are ranked. Only ranks that were correct often enough of late are requested.

    A step calls ``begin_step``, then ``observe`` and ``request`` at each MoE layer if it ``observes``, then
    ``end_step``. The engine's thread calls these; ``statistics`` may be called from any.

    Args:
        store: reads the experts.
        experts_per_layer: number of experts of each MoE layer, in the order in which layers run.
        gates: by layer, the gate that predicts the next layer's experts.
        coactivation: predicts where there is no gate.
        governor: decides whether prefetching pays.
    """

    def __init__(
        self,
        store: PrefetchTarget,
        experts_per_layer: Mapping[int, int],
        gates: Mapping[int, Gate],
        coactivation: CoactivationPredictor | None,
        governor: Governor,
    ):
        self._store, self._gates, self._coactivation, self._governor = store, gates, coactivation, governor
        self.for_prompts: ReadAhead | None = None  # takes part in pieces of prompts instead, if anything does
        layers = list(experts_per_layer)
        self._keys = {
            layer: tuple(ExpertKey(layer, expert) for expert in range(count))
            for layer, count in experts_per_layer.items()
        }
        self._next = dict(pairwise([*layers, layers[0]]))
        self._prediction: _Prediction | None = None
        ungated = [layer for layer in layers if layer not in gates]
        self._learnt = {*ungated, *(self._next[layer] for layer in ungated)}  # layers whose choices are learnt
        self._precision = {layer: _RankPrecision() for layer in layers}
        self._num_steps = self._num_lookups = 0
        self._is_requesting = self._is_predicting = self._has_started = False
        self.has_gates = all(layer in gates for layer in layers[:-1])  # for each layer but the first of a step
        self._predicted = dict.fromkeys(PREDICTORS, 0)
        self._correct = dict.fromkeys(PREDICTORS, 0)
        self._chosen_by_layer = dict.fromkeys(layers, 0)
        self._correct_by_layer = dict.fromkeys(layers, 0)

    def begin_step(self) -> None:
        self._is_requesting = self._governor.is_active
        # Two steps in a row, as the last layer is followed by the first one of the next step.
        self._is_predicting = self._is_requesting or self._num_steps % SAMPLING_INTERVAL < 2  # noqa: PLR2004
        if not self._is_predicting:
            self._prediction = None
            if self._coactivation is not None:
                self._coactivation.interrupt()
        self._num_lookups = 0

    def observe(self, layer: int, top_k_index: IntArray, gate_input: Any, keys_of: KeysOf | None = None) -> None:
        """Learn from the experts that a layer chose, and predict the next layer's.

        Args:
            top_k_index: ``(tokens, k)``; an index beyond the last expert means no expert.
            gate_input: the input of the layer's experts, as its gate takes it.
            keys_of: maps numbers to experts for these tokens; by default to those of the base model.
        """
        if keys_of is None:
            keys_of = self._base_keys
        chosen = keys_of(layer, top_k_index)
        self._num_lookups += len(chosen)
        if not self._is_predicting:
            return
        self._score(layer, set(chosen))
        if self._coactivation is not None and layer in self._learnt:
            self._coactivation.observe(layer, top_k_index)
        self._predict(layer, top_k_index, gate_input, keys_of, len(chosen))

    @property
    def observes(self) -> bool:
        """True if this step has to call ``observe`` at each layer; otherwise ``count_lookups`` is enough."""
        return self._is_predicting

    def asked_ranks(self, layer: int) -> int:
        """Return the ranks of a layer's predictions that this step requests: bit i is set if rank i is."""
        return self._precision[layer].asked if self._is_requesting else 0

    def count_lookups(self, count: int) -> None:
        """Note that a step requested so many experts, in layers that it does not observe."""
        self._num_lookups += count

    def request(self) -> None:
        """Request the predicted experts. The store starts the reads that the disk has time for, so call this again."""
        if not self._is_requesting or self._prediction is None or not self._prediction.worthwhile:
            return
        started = self._store.prefetch(self._prediction.worthwhile)
        if self._has_started and not started:  # the rest is there by now, or the queue stays full
            self._prediction.worthwhile.clear()
        self._has_started = self._has_started or started > 0

    def end_step(self, seconds: float) -> None:
        """Note that a decode step has ended and took ``seconds``."""
        self._num_steps += 1
        self._governor.record(seconds, self._num_lookups)

    def _base_keys(self, layer: int, numbers: IntArray) -> list[ExpertKey]:
        """Return the experts of the base model; see ``KeysOf``."""
        keys = self._keys[layer]
        return [keys[number] for number in dict.fromkeys(numbers.T.ravel().tolist()) if number < len(keys)]

    def _score(self, layer: int, chosen: set[ExpertKey]) -> None:
        """Compare the prediction with the experts that the layer chose."""
        prediction, self._prediction = self._prediction, None
        if prediction is None or prediction.layer != layer:
            return
        correct = len(chosen.intersection(prediction.experts))
        self._predicted[prediction.predictor] += len(prediction.experts)
        self._correct[prediction.predictor] += correct
        self._chosen_by_layer[layer] += len(chosen)
        self._correct_by_layer[layer] += correct
        self._precision[layer].learn(prediction.experts, chosen)

    def _predict(self, layer: int, top_k_index: IntArray, gate_input: Any, keys_of: KeysOf, count: int) -> None:
        gate, following = self._gates.get(layer), self._next[layer]
        predictor: Predictor
        if gate is not None:
            predictor, experts = "gate", keys_of(following, gate(gate_input))
        elif self._coactivation is not None:
            likely = np.array([self._coactivation.predict(layer, top_k_index, count)])
            predictor, experts = "coactivation", keys_of(following, likely.repeat(len(top_k_index), 0))[:count]
        else:
            return
        worthwhile = self._precision[following].worthwhile(experts)
        self._prediction, self._has_started = _Prediction(predictor, following, experts, worthwhile), False

    def statistics(self) -> PrefetchStatistics:
        recall = {
            layer: self._correct_by_layer[layer] / chosen for layer, chosen in self._chosen_by_layer.items() if chosen
        }
        return PrefetchStatistics(
            self._governor.is_active,
            dict(self._predicted),
            dict(self._correct),
            recall,
            self._governor.seconds_with,
            self._governor.seconds_without,
        )


def make_prefetcher(
    mode: PrefetchMode,
    store: PrefetchTarget,
    experts_per_layer: Mapping[int, int],
    gates: Mapping[int, Gate],
    *,
    begins_active: bool = False,
) -> Prefetcher | None:
    """Make the prefetcher of a mode: ``auto`` uses gates where there are any, and co-activation elsewhere.

    Args:
        begins_active: prefetch before the first trial, as misses are slow.
    """
    if mode == "off":
        return None
    coactivation = None if mode == "gate" else CoactivationPredictor(experts_per_layer)
    governor = Governor(begins_active=begins_active)
    return Prefetcher(store, experts_per_layer, {} if mode == "coactivation" else gates, coactivation, governor)
