"""ReloadHooks: the parts of the server that are loaded again while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

SIGHUP, CHANGED_FILE = "SIGHUP", "changed-file"  # why parts are loaded again

Reload = Callable[[str], str]


class ReloadHooks:
    """Functions that load something again, one by one and off the event loop, each time that ``run`` is called."""

    def __init__(self) -> None:
        self._hooks: dict[str, Reload] = {}
        self._is_running = asyncio.Lock()

    def add(self, name: str, reload: Reload) -> None:
        """Add a function.

        Args:
            name: of the thing that it loads, for the log.
            reload: loads it, given the reason, and returns a few words about the result. If it raises an exception, it
                has kept what was loaded before.
        """
        self._hooks[name] = reload

    async def run(self, reason: str) -> None:
        """Call all functions, and log the outcome of each. A call during another one follows it.

        Args:
            reason: ``SIGHUP`` or ``CHANGED_FILE``.
        """
        async with self._is_running:
            if not self._hooks:
                log.info("%s: there is nothing to reload", reason)
            for name, reload in self._hooks.items():
                try:
                    result = await asyncio.to_thread(reload, reason)
                except Exception as error:  # noqa: BLE001  one that fails must not keep others from being loaded
                    log.error("cannot reload the %s, which stay as they are: %s", name, error)  # noqa: TRY400
                else:
                    log.info("reloaded the %s: %s", name, result)
