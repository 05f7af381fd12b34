"""An upper bound of tokens per second for one sequence, from bytes and bandwidths."""

from __future__ import annotations

from dataclasses import dataclass, replace

LATER_RATIOS = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Bandwidths:
    """Measured bandwidths in bytes per second."""

    compute: float  # memory that compute reads: the device's, or the host's on a CPU
    disk: float
    copy: float | None = None  # host to device, if the device has its own memory
    record_gain: float | None = None  # of the disk, as a share, if experts are one record each; None if it is unknown

    @property
    def with_records(self) -> Bandwidths:
        """The same, if experts are one record each."""
        return replace(self, disk=self.disk * (1 + (self.record_gain or 0.0)))


@dataclass(frozen=True)
class Traffic:
    """Bytes read per token."""

    trunk: int
    experts: int  # as memory has them
    stored_experts: int  # as the files have them


def tokens_per_second(traffic: Traffic, bandwidths: Bandwidths, hit_ratio: float, device_ratio: float = 1.0) -> float:
    """Return the bound if reading, copying and computing overlap perfectly, and the context is empty.

    Args:
        hit_ratio: share of look-ups that find their expert in memory of any kind, 0 to 1.
        device_ratio: share of look-ups that find their expert in the memory that compute reads, 0 to 1.
    """
    seconds = [
        (traffic.trunk + traffic.experts) / bandwidths.compute,
        (1 - hit_ratio) * traffic.stored_experts / bandwidths.disk,
    ]
    if bandwidths.copy is not None:
        seconds.append((1 - device_ratio) * traffic.experts / bandwidths.copy)
    return 1 / max(seconds)


def hit_ratios(uniform: float) -> list[float]:
    """Return the hit ratio of uniform routing, the pessimistic one, and higher ratios up to 1."""
    return [uniform, *(ratio for ratio in LATER_RATIOS if ratio > uniform)]
