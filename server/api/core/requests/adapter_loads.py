"""Loading of adapters that requests name for the first time: each once, however many requests wait for it."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from server.api.core.access.audit import audited
from server.api.core.access.caller import current_caller
from server.api.core.requests.auto_request import learn_examples
from server.api.core.requests.loaded_model import LoadedModel
from server.engine.interface import AdapterLoader, EngineError


class AdapterLoads:
    """The loads that run now. Use it in the event loop's thread only."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()  # held while one is loaded, so that all together take one thread

    async def load_missing(self, model: LoadedModel, names: Iterable[str]) -> None:
        """Load the adapters of some names that are not served yet, if the caller may use them, and those of its policy.

        Args:
            model: the base model.

        Raises:
            RequestRefusedError: there is one that can't be served.

        """
        loader, policy = model.adapters_on_request, current_caller().policy
        if loader is None:
            return
        required = () if policy is None else [name for name, _ in policy.adapters]
        allowed = [name for name in names if policy is None or policy.allows(name)]
        for name in dict.fromkeys([*allowed, *required]):
            if name == model.name or model.has_other(name):
                continue
            if name not in self._running:
                task = self._running[name] = asyncio.create_task(self._load(model, loader, name))
                task.add_done_callback(partial(self._forget, name))
            await asyncio.shield(self._running[name])

    async def _load(self, model: LoadedModel, loader: AdapterLoader, name: str) -> None:
        async with self._turn:
            if not await asyncio.to_thread(loader.load, name):
                return
        with audited("adapter.load", adapter=name, path=name):
            model.profiles.in_background(learn_examples(model))

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        del self._running[name]
        with suppress(EngineError, asyncio.CancelledError):
            task.result()  # whoever waited has seen the error, or has left
