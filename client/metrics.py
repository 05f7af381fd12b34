"""Prometheus metrics of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "greenroom_"


@dataclass(frozen=True)
class Sample:
    """One sample: metric name, labels and value."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Metrics:
    """All samples of one scrape."""

    samples: tuple[Sample, ...]

    def total(self, name: str, **labels: str) -> float:
        """Sum a metric over all samples with the given labels. The prefix ``greenroom_`` of the name is optional.

        Raises:
            KeyError: If the server exports no such metric.
        """
        of_name = [sample for sample in self.samples if sample.name in (name, PREFIX + name)]
        if not of_name:
            raise KeyError(f"the server exports no metric {name!r}")
        return sum(sample.value for sample in of_name if labels.items() <= sample.labels.items())


def parse_metrics(text: str) -> Metrics:
    """Parse Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  rarely needed

    return Metrics(
        tuple(
            Sample(sample.name, dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )
    )
