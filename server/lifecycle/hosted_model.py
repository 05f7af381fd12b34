"""HostedModel: a service and the model that it gets, from loading to freeing, apart from sockets and signals."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from server.api.core.access.audit import audit
from server.api.core.requests.auto_request import learn_examples
from server.api.core.requests.loaded_model import LoadedModel
from server.lifecycle.access_policy_setup import add_policies
from server.lifecycle.history_recording import record_history
from server.lifecycle.reload_hooks import ReloadHooks
from server.lifecycle.service_setup import add_key_files, make_service
from server.lifecycle.tracing_setup import open_tracing
from server.loading.bundled_weights import ADAPTERS, chosen_model, with_bundled_adapters
from server.loading.load import LoadedServer, load_server
from server.panics import panics_as_errors
from server.settings import ServeSettings

# The event loop waits as long for each thread that tokenizes or decodes in Python; Python's own 5 ms add up to 100 ms.
SWITCH_SECONDS = 0.001


class HostedModel:
    """A service whose model is yet to be loaded.

    Call ``load``, ``use`` its result, ``drain`` or not, then ``stop_recording``, every one of ``closings``, and
    ``close_service``; ``lifespan`` does all of it.

    Args:
        model: as on the command line.
        address: where the server listens.

    Raises:
        SettingsError: a setting can't be used.
    """

    def __init__(self, model: str | None, settings: ServeSettings, address: str):
        self._model = chosen_model(model, settings)
        self._settings = with_bundled_adapters(self._model, settings)
        self._tracing = open_tracing(settings)
        self.service = make_service(self._settings, address)
        self.service.tracer = self._tracing
        self.hooks = ReloadHooks()  # what can be reloaded while it serves
        add_key_files(self.hooks, self.service, self._settings)
        self._policies = add_policies(self._settings, self.service, self.hooks)
        self._loaded: LoadedServer | None = None
        self._recording: asyncio.Task[None] | None = None

    def load(self) -> asyncio.Future[LoadedServer]:
        """Load the model in a daemon thread, which does not keep the process alive if it ends meanwhile."""
        return _load_in_thread(self._model, self._settings)

    async def use(self, loaded: LoadedServer) -> None:
        """Let the service answer with a loaded model.

        Raises:
            SettingsError: the model can't run as a policy demands.
        """
        self._loaded, service, settings = loaded, self.service, self._settings
        if self._policies is not None:
            await asyncio.to_thread(self._policies.use_model, loaded.directory.prepare)
        service.model = LoadedModel(
            loaded.name,
            loaded.engine,
            loaded.codec,
            defaults=loaded.defaults,
            experts=loaded.experts,
            expert_health=lambda: loaded.store.health,
            keeps_stalls=self._tracing is not None,
            card=loaded.card,
            adapters=None if loaded.adapters is None else loaded.adapters.registry,
            adapters_on_request=None if loaded.adapters is None else loaded.adapters.on_request,
            directory=loaded.directory,
            variants=loaded.variants,
            memory=loaded.request_memory,
        )
        loaded.metrics.access_refusals = lambda: service.access_refusals.of(service.policies)
        service.metrics = loaded.metrics.render
        self._recording = asyncio.create_task(record_history(service, loaded.experts.totals))
        _audit_start(loaded)
        if settings.adapters_dir != ADAPTERS:  # the bundled ones cost nothing before `auto` is asked for
            service.model.profiles.in_background(learn_examples(service.model))
        # Objects of the loaded model stay. Checking them for garbage stops every thread for 0.2 s and more.
        gc.freeze()
        sys.setswitchinterval(SWITCH_SECONDS)

    def stop_recording(self) -> None:
        """End the record of the service's history."""
        if self._recording is not None:
            self._recording.cancel()

    def closings(self) -> list[Callable[[], None]]:
        """Return the last work of the model and of its traces; each may block."""
        closings = [] if self._loaded is None else [self._loaded.close]
        return closings if self._tracing is None else [*closings, self._tracing.close]

    async def close_service(self) -> None:
        """Close the files of the service."""
        if self.service.response_store is not None:
            await asyncio.to_thread(self.service.response_store.close)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncGenerator[None]:
        """Load the model, and free it at the end.

        Raises:
            ModelError, ExpertStoreError, SettingsError: the model can't be served.
        """
        try:
            await self.use(await self.load())
            yield
        finally:
            self.service.is_draining = True
            self.stop_recording()
            for closing in self.closings():
                await asyncio.to_thread(closing)
            await self.close_service()
            gc.unfreeze()


def _audit_start(loaded: LoadedServer) -> None:
    """Write an audit line for each adapter and variant that was loaded at start."""
    for version, _ in [] if loaded.adapters is None else loaded.adapters.registry.versions():
        audit("adapter.load", who="start", adapter=version.name, path=str(version.folder))
    for name in loaded.variants.names():
        audit("variant.load", who="start", variant=name, path=loaded.directory.root(f"{loaded.name}:{name}"))


def _load_in_thread(model: str | None, settings: ServeSettings) -> asyncio.Future[LoadedServer]:
    """Load the model in a daemon thread, which does not keep the process alive if it is stopped while loading."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[LoadedServer] = loop.create_future()

    def settle(result: LoadedServer | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def load() -> None:
        try:
            with panics_as_errors():
                result = load_server(model, settings)
        except Exception as error:  # noqa: BLE001  raised where the future is awaited
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    threading.Thread(target=load, name="loader", daemon=True).start()
    return future
