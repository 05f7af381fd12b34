"""What is shown at the moment."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from client.frames import ExpertFrame
from client.terminal import printable
from client.top.picture import picture
from client.top.trends import Trends, View


class Monitor:
    """The last frame of a server and the trends behind it; it goes on showing them while the server is away.

    Args:
        server: its name for the title.
        hint: what else the title says.
    """

    def __init__(self, server: str, hint: str | None = None):
        self._server, self._hint = server, hint
        self._trends: Trends | None = None
        self._view: View | None = None
        self._problem: str | None = None
        self._is_paused = False

    def take(self, frame: ExpertFrame, now: float) -> None:
        """Show the next frame, which came at ``now`` seconds of some clock."""
        if self._trends is None:
            self._trends = Trends(frame, now)
        else:
            self._trends.add(frame, now)
        self._problem = None
        if not self._is_paused:
            self._view = self._trends.view

    def lose(self, problem: str) -> None:
        """Say why no frames come; those that come next may be of another process."""
        self._problem, self._trends = problem, None

    def toggle_pause(self) -> None:
        self._is_paused = not self._is_paused
        if not self._is_paused and self._trends is not None:
            self._view = self._trends.view

    def picture(self, height: int) -> RenderableType:
        if self._view is None:
            return Text(printable(self._problem or f"waiting for {self._server}"))
        return picture(self._view, self._title(self._view), height)

    def _title(self, view: View) -> str:
        words = [f"{view.frame.model} at {self._server}"]
        if self._is_paused:
            words.append("paused")
        if self._problem is not None:
            words.append(f"reconnecting: {self._problem}")
        elif self._hint is not None:
            words.append(self._hint)
        return " · ".join(words)
