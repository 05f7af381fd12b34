"""A server's metrics, as Prometheus would scrape them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "greenroom_"


@dataclass(frozen=True)
class Sample:
    """One number, with the name and the labels under which it is exported."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Metrics:
    """All samples of one moment."""

    samples: tuple[Sample, ...]

    def total(self, name: str, **labels: str) -> float:
        """Sum of a metric over the samples that carry these labels; its name may lack ``greenroom_``.

        Raises:
            KeyError: the server exports no such metric.
        """
        of_name = [sample for sample in self.samples if sample.name in (name, PREFIX + name)]
        if not of_name:
            raise KeyError(f"the server exports no metric {name!r}")
        return sum(sample.value for sample in of_name if labels.items() <= sample.labels.items())


def metrics_of(text: str) -> Metrics:
    """Samples out of Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  few need it

    return Metrics(
        tuple(
            Sample(sample.name, dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )
    )
