"""StepChoices: the adapters that are chosen for each token of a step at each linear layer.

Arrow scores adapters by ``|x . v|``, where x is a token's input of the layer, and v the adapter's prototype for the
layer; a trained gate by ``x . v`` with vectors of its own. The best ``top_k`` have the softmax of their scores as
factors; of equal ones, the first by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from server.kernels.low_rank import Factors
from server.model.adapters.errors import AdapterError
from server.model.adapters.prototypes import Vectors, vectors_of
from server.model.chunk_weights import AdapterChooser, ChosenAdapters
from server.model.lora_adapter import LoraAdapter
from server.model.step import SequenceChunk


class StepChoices:
    """The choosers of adapters in a step, the tokens of each, and sums of the factors that they gave.

    Args:
        choosers: without repetition.
        chooser_of_token: ``(tokens,)``, -1 for tokens with fixed factors only.
        adapters: of the step.
    """

    def __init__(
        self,
        choosers: Sequence[AdapterChooser],
        chooser_of_token: npt.NDArray[np.int32],
        adapters: Sequence[LoraAdapter],
    ):
        self.choosers, self.chooser_of_token, self._adapters = choosers, chooser_of_token, adapters
        self.candidates = np.array(
            [[adapter in chooser.adapters for adapter in adapters] for chooser in choosers], dtype=np.uint8
        )  # (choosers, adapters)
        self._is_routed = [any(column) for column in self.candidates.T.tolist()]  # by adapter
        self.totals = np.zeros((len(chooser_of_token), len(adapters)), dtype=np.float32)
        self.counts = np.zeros(len(chooser_of_token), dtype=np.int32)  # layers that each token was routed at

    @classmethod
    def of(
        cls,
        choosers: Sequence[AdapterChooser | None],
        num_tokens: Sequence[int],
        adapters: Sequence[LoraAdapter],
    ) -> Self | None:
        """Return the choices of a step; None if every sequence has fixed adapters.

        Args:
            choosers: of each sequence.
            num_tokens: of each sequence.
        """
        if not any(choosers):
            return None
        places = {chooser: place for place, chooser in enumerate(dict.fromkeys(filter(None, choosers)))}
        numbers = [-1 if chooser is None else places[chooser] for chooser in choosers]
        return cls([*places], np.array(numbers, dtype=np.int32).repeat(num_tokens), adapters)

    def vectors(self) -> list[Vectors]:
        """Return the vectors of each adapter of the step by which choosers score it, none for others."""
        found = zip(self._adapters, self._is_routed, strict=True)
        return [vectors_of(adapter) if is_routed else {} for adapter, is_routed in found]

    def refuse(self, name: str) -> None:
        """Raise ``AdapterError`` if a chooser would choose adapters at a layer that can't have other ones by token."""
        for adapter, is_routed in zip(self._adapters, self._is_routed, strict=True):
            if is_routed and name in adapter.linears:
                raise AdapterError(
                    f"the adapter {adapter.name!r} can't be chosen by token, because it adds to {name}, which "
                    "attention applies to the keys of all earlier tokens at once; use it with a fixed weight"
                )

    def add_factors(self, name: str, x: torch.Tensor, tokens: npt.NDArray[np.int64], factors: Factors) -> Factors:
        """Return the factors of the rows of a linear layer together with those that the choosers give.

        Args:
            name: of the layer.
            x: its input, ``(rows, inputs)``.
            tokens: of the rows.
            factors: the fixed ones, ``(rows, adapters)``.
        """
        if not any(name in adapter.linears for adapter in self._adapters):
            return factors
        factors, choosers = factors.copy(), self.chooser_of_token[tokens]
        for number, chooser in enumerate(self.choosers):
            rows = np.flatnonzero(choosers == number)
            columns = [
                place
                for place in np.flatnonzero(self.candidates[number]).tolist()
                if name in self._adapters[place].linears
            ]
            if not len(rows) or not columns:
                continue
            vectors = torch.stack([vectors_of(self._adapters[place])[name] for place in columns])
            scores = F.linear(x[torch.from_numpy(rows).to(x.device)].float(), vectors)
            given = _softmax_of_best(scores if chooser.is_signed else scores.abs(), chooser)
            factors[rows[:, None], columns] += given
            for place, column in zip(columns, given.T, strict=True):
                np.add.at(self.totals[:, place], tokens[rows], column)  # rows of a token add up
            np.add.at(self.counts, tokens[rows], 1)
        return factors

    def chosen(self, chunks: Sequence[SequenceChunk]) -> list[ChosenAdapters | None]:
        """Return the adapters' shares in the tokens of each chunk with a chooser, after the step has run."""
        names = [adapter.name for adapter in self._adapters]
        shares = self.totals / np.maximum(self.counts, 1)[:, None]  # (tokens, adapters)
        found: list[ChosenAdapters | None] = []
        for end, chunk in zip(accumulate(chunk.num_tokens for chunk in chunks), chunks, strict=True):
            rows = slice(end - chunk.num_tokens, end)
            chooser = int(self.chooser_of_token[rows.start])
            if chooser < 0:
                found.append(None)
                continue
            chosen, routed = np.flatnonzero(self.candidates[chooser]), np.flatnonzero(self.counts[rows])
            own = shares[rows][:, chosen]  # (tokens, candidates)
            own_names = [names[place] for place in chosen]
            sums = dict(zip(own_names, own.sum(axis=0).tolist(), strict=True))
            wants_last = chunk.wants_adapters and len(routed) > 0
            last = dict(zip(own_names, own[routed[-1]].tolist(), strict=True)) if wants_last else {}
            found.append(ChosenAdapters(sums, len(routed), last))
        return found


def _softmax_of_best(scores: torch.Tensor, chooser: AdapterChooser) -> Factors:
    """Return factors ``(rows, adapters)`` from scores, 0 for all but the best."""
    count = min(chooser.top_k, scores.shape[1])
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    best = torch.softmax(scores.gather(1, order) / chooser.temperature, dim=1)
    factors: Factors = torch.zeros_like(scores).scatter_(1, order, best).cpu().numpy()
    return factors
