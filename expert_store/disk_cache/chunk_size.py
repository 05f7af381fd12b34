"""ChunkSize: how much a download may ask for at once, so that a read which somebody waits for is not held up."""

from __future__ import annotations

MIN_BYTES, MAX_BYTES = 16 << 10, 2 << 20
SECONDS = 0.005  # of the link that a request may take


class ChunkSize:
    """The bytes of a request, adapted to the speed of the link; its latency, the shortest time, does not count."""

    def __init__(self) -> None:
        self.nbytes = 4 * MIN_BYTES
        self._latency = float("inf")

    def adapt(self, nbytes: int, seconds: float) -> None:
        """Learn from a request that took some time."""
        self._latency = min(self._latency, seconds)
        wanted = SECONDS * nbytes / max(seconds - self._latency, 1e-6)
        self.nbytes = int(min(max(wanted, self.nbytes / 2, MIN_BYTES), 2 * self.nbytes, MAX_BYTES))
