"""Measures how often the model ``auto`` chooses the adapter that a text belongs to, beside a majority guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

MAX_CHARACTERS = 1000  # of a text that is sent
NUM_CLIENTS = 4


@dataclass(frozen=True)
class RoutingAccuracy:
    """Choices by (domain, chosen model)."""

    choices: Counter[tuple[str, str]]

    @property
    def accuracy(self) -> float:
        """Part of the texts for which the model named as their domain was chosen."""
        return sum(count for (domain, chosen), count in self.choices.items() if domain == chosen) / self.choices.total()

    @property
    def majority(self) -> float:
        """The accuracy of always choosing the most frequent domain."""
        return max(self._texts_by_domain().values()) / self.choices.total()

    def by_domain(self) -> dict[str, float]:
        """Return the accuracy for the texts of each domain."""
        return {domain: self.choices[domain, domain] / total for domain, total in self._texts_by_domain().items()}

    def _texts_by_domain(self) -> Counter[str]:
        totals: Counter[str] = Counter()
        for (domain, _), count in self.choices.items():
            totals[domain] += count
        return totals


def score_routing(
    url: str, pairs: Sequence[tuple[str, str]], threshold: float | None = None, api_key: str = "none"
) -> RoutingAccuracy:
    """Ask a server for each text with the model ``auto``, and compare what it chooses with the text's domain.

    Args:
        url: of a server with loaded adapters.
        pairs: texts, each with its domain: the name of the adapter that is right, or of the base model.
        threshold: the nearness that is enough; None for the server's own.

    Raises:
        httpx.HTTPStatusError: the server refused a text.
    """
    routing = {"method": "embedding"} | ({} if threshold is None else {"threshold": threshold})

    def chosen(pair: tuple[str, str]) -> tuple[str, str]:
        body = {"model": "auto", "prompt": pair[0][:MAX_CHARACTERS], "max_tokens": 1, "routing": routing}
        answer = client.post("/v1/completions", json=body).raise_for_status()
        return pair[1], answer.json()["greenroom"]["routing"]["model"]

    headers = {"Authorization": f"Bearer {api_key}"}
    with (
        httpx.Client(base_url=url, headers=headers, timeout=120) as client,
        ThreadPoolExecutor(NUM_CLIENTS) as threads,
    ):
        return RoutingAccuracy(Counter(threads.map(chosen, pairs)))
