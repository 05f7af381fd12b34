"""Growth of a real server's metrics."""

from __future__ import annotations

from threading import Event

from tests.e2e.processes import Server, total

LATENCIES = ("request_queue_time", "time_to_first_token", "inter_token_latency", "e2e_request_latency")


class Counted:
    """Measures the growth of metrics from one idle moment of the server to the next."""

    def __init__(self, server: Server):
        self._server = server
        self._before = self._at_rest()
        self._after: dict[str, float] | None = None

    def _at_rest(self) -> dict[str, float]:
        while True:
            samples = self._server.metrics()
            if not samples["greenroom_num_requests_running"] + samples["greenroom_num_requests_waiting"]:
                return samples
            Event().wait(0.01)

    def growth(self, name: str, *labels: str) -> float:
        if self._after is None:
            self._after = self._at_rest()
        return total(self._after, name, *labels) - total(self._before, name, *labels)

    def wait_for(self, name: str) -> None:
        while not self.growth(name):
            self._after = None

    def ended(self, reason: str) -> float:
        return self.growth("request_success_total", f'finished_reason="{reason}"')

    def latencies(self) -> list[float]:
        """Return the counts of observations, in the order of ``LATENCIES``; all buckets and sums agree with it."""
        counts = []
        for name in LATENCIES:
            count = self.growth(f"{name}_seconds_count")
            assert self.growth(f"{name}_seconds_bucket", 'le="+Inf"') == count
            assert (self.growth(f"{name}_seconds_sum") > 0) == (count > 0)
            counts.append(count)
        return counts
