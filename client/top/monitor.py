"""State of the live view."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from client.frames import ExpertFrame
from client.requests import RequestStatus
from client.terminal import printable
from client.top.rendering import Screen
from client.top.trends import Trends, View
from client.top.weights_table import Weights


def has_requests(frame: ExpertFrame) -> bool:
    """Return True if requests are running or waiting."""
    return frame.num_requests_running + frame.num_requests_waiting > 0


class Monitor:
    """Holds the last frame of a server and its trends, and keeps showing them while the server is unreachable.

    Args:
        server: Server name in the title.
        hint: Keys at the end of the title; the key to switch the view is added.
        shows_weights: Show variants and adapters in the place of experts.
    """

    def __init__(self, server: str, hint: str | None = None, *, shows_weights: bool = False):
        self._server, self._hint, self.shows_weights = server, hint, shows_weights
        self._trends: Trends | None = None
        self._view: View | None = None
        self._problem: str | None = None
        self._is_paused = False

    def add_frame(
        self,
        frame: ExpertFrame,
        now: float,
        requests: Sequence[RequestStatus] = (),
        weights: Weights | None = None,
    ) -> None:
        """Show the next frame, received at ``now`` seconds of a monotonic clock, and the requests.

        Args:
            weights: variants and adapters; None if they were not asked for.
        """
        if self._trends is None:
            self._trends = Trends(frame, now)
        else:
            self._trends.add(frame, now)
        self._trends.add_requests(requests)
        if weights is not None:
            self._trends.add_weights(weights)
        self._problem = None
        if not self._is_paused:
            self._view = self._trends.view

    def set_problem(self, problem: str) -> None:
        """Show why there are no frames, and drop the trends, because the next frame may be of another process."""
        self._problem, self._trends = problem, None

    def toggle_pause(self) -> None:
        self._is_paused = not self._is_paused
        if not self._is_paused and self._trends is not None:
            self._view = self._trends.view

    def toggle_weights(self) -> None:
        """Switch between experts, and variants and adapters."""
        self.shows_weights = not self.shows_weights

    def render(self, height: int) -> RenderableType:
        if self._view is None:
            return Text(printable(self._problem or f"waiting for {self._server}"))
        return Screen(self._view, self._title(self._view), height, self.shows_weights)

    def _title(self, view: View) -> str:
        parts = [f"{view.frame.model} at {self._server}"]
        if self._is_paused:
            parts.append("paused")
        if self._problem is not None:
            parts.append(f"reconnecting: {self._problem}")
        elif self._hint is not None:
            parts.append(f"{self._hint}, v shows {'experts' if self.shows_weights else 'variants and adapters'}")
        return " · ".join(parts)
