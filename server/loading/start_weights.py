"""Loads the adapters and variants of a server's start: those of its flags, and those of its last run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from server.engine.interface import AdapterExamples, RequestRefusedError
from server.loading.bundled_weights import ADAPTERS
from server.settings import ServeSettings, SettingsError
from server.weights.adapter_folders import find_adapters
from server.weights.adapter_registry import AdapterRegistry
from server.weights.saved_state import Journal, SavedState, SavedWeights, StateError
from server.weights.variant_registry import VariantRegistry

log = logging.getLogger(__name__)


def open_state(settings: ServeSettings) -> SavedState | None:
    """Open the file of ``--state``; None without the setting.

    Raises:
        SettingsError: it can't be used.
    """
    try:
        return None if settings.state is None else SavedState(settings.state)
    except StateError as error:
        raise SettingsError(f"--state {error}") from error


def load_start_adapters(settings: ServeSettings, registry: AdapterRegistry, state: SavedState | None) -> None:
    """Load the adapters of ``--adapter``, of ``--load-adapters all`` and of the last run; then note what changes.

    Raises:
        SettingsError: one of ``--adapter`` can't be served, or the folder of all can't be read.
    """
    unloaded = () if state is None else state.adapters.unloaded
    for named in settings.adapter:
        if _is_unloaded("adapter", named.name, unloaded):
            continue
        try:
            registry.load_own(named.name, named.path)
        except RequestRefusedError as error:
            if Path(named.path).parent == ADAPTERS:  # nobody has asked for it
                log.warning("the bundled adapter %s is not loaded: %s", named.name, error)
                continue
            raise SettingsError(f"--adapter {named}: {error}") from error
    for name in _names_in_folder(settings):
        if registry.find(name) is None and not _is_unloaded("adapter", name, unloaded):
            with _reported("adapter", name, "--load-adapters all"):
                registry.load(name, name)
    if state is None:
        return
    for saved in state.adapters.loaded:
        with _reported("adapter", saved.name, "--state"):
            registry.load(saved.name, saved.path, replace=True, examples=_examples(saved))
    registry.journal = Journal(state, "adapters", partial(_loads_at_start, settings))


def report_unloadable(state: SavedState | None) -> None:
    """Report the adapters of the last run that a server without adapters can't load; they stay in the file."""
    for saved in () if state is None else state.adapters.loaded:
        log.warning("the adapter %s of --state is not loaded: start the server with --adapters-dir", saved.name)


def load_start_variants(settings: ServeSettings, registry: VariantRegistry, state: SavedState | None) -> None:
    """Load the variants of ``--variant`` and of the last run; then note what changes.

    Raises:
        SettingsError: one of ``--variant`` can't be served.
    """
    unloaded = () if state is None else state.variants.unloaded
    for named in settings.variant:
        if _is_unloaded("variant", named.name, unloaded):
            continue
        try:
            registry.load_own(named.name, named.path)
        except RequestRefusedError as error:
            raise SettingsError(f"--variant {named}: {error}") from error
    if state is None:
        return
    for saved in state.variants.loaded:
        with _reported("variant", saved.name, "--state"):
            registry.load(saved.name, saved.path)
    of_flags = {named.name for named in settings.variant}
    registry.journal = Journal(state, "variants", of_flags.__contains__)


def _names_in_folder(settings: ServeSettings) -> list[str]:
    """Return the adapters that ``--load-adapters all`` loads.

    Raises:
        SettingsError: the folder can't be read.
    """
    if settings.load_adapters != "all" or settings.adapters_dir is None:
        return []
    try:
        return find_adapters(settings.adapters_dir)
    except OSError as error:
        raise SettingsError(f"--adapters-dir {settings.adapters_dir} can't be read: {error.strerror}") from error


def _loads_at_start(settings: ServeSettings, name: str) -> bool:
    """Return True if flags load an adapter at each start, or may do so: its folder can't be read now."""
    if name in {named.name for named in settings.adapter}:
        return True
    try:
        return name in _names_in_folder(settings)
    except SettingsError:
        return True


def _is_unloaded(kind: str, name: str, unloaded: Collection[str]) -> bool:
    """Return True if weights were unloaded in the last run, and log it."""
    if name in unloaded:
        log.info("the %s %s is not loaded, because it was unloaded when the server ran last (--state)", kind, name)
    return name in unloaded


def _examples(saved: SavedWeights) -> AdapterExamples | None:
    examples = saved.routing
    return None if examples is None else AdapterExamples.checked(examples.description, examples.examples)


@contextmanager
def _reported(kind: str, name: str, flag: str) -> Iterator[None]:
    """Report a refusal in the log, and go on."""
    try:
        yield
    except RequestRefusedError as error:
        log.warning("the %s %s of %s is not loaded: %s", kind, name, flag, error)
