"""Protocols of the weights that requests may choose, and of the adapters among them, for the HTTP API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from server.engine.interface.access_policy import AccessPolicy
from server.engine.interface.adapter_choice import AdapterCandidate, AdapterExamples, ChoiceByToken
from server.engine.interface.request_weights import RequestWeights


class WeightsDirectory(Protocol):
    """The names of weights beside the base model's."""

    def names(self) -> list[str]:
        """Return the names under which such weights are served, as models."""

    def root(self, name: str) -> str | None:
        """Return the path that a name was loaded from; None if there is no such name."""

    def resolve(
        self,
        name: str | None,
        adapters: Sequence[tuple[str, float]] = (),
        policy: AccessPolicy | None = None,
        by_token: ChoiceByToken | None = None,
    ) -> RequestWeights | None:
        """Return the names of a request's weights; None for those of the base model alone.

        Args:
            name: one of ``names``, or None for the base model.
            adapters: names and factors of adapters to add.
            policy: whose adapters are added, and whose forbidden experts are removed. The names that it allows are for
                the caller to check.
            by_token: chooses further adapters for each token, of those that the policy allows.

        Raises:
            UnknownAdapterError: there is no such name.
            RequestRefusedError: they can't be used together.
            AccessRefusedError: the weights can't be used as the policy demands.
            RequiredAdapterError: an adapter of the policy is not loaded.
        """

    def prepare(self, policies: Iterable[AccessPolicy]) -> None:
        """Check that the model can run as policies demand, and prepare for their requests. May block.

        Raises:
            UnusableAccessPolicyError: it can't; nothing has changed.
        """

    def candidates(self) -> list[AdapterCandidate]:
        """Return the weights that a router may choose for a request, as they are at one moment."""

    def note_routed(self, name: str | None) -> None:
        """Count a request that a router sent to weights of that name, or to the base model for None."""


class VariantAdministration(Protocol):
    """Loads and unloads expert variants. Every call may block, so make it off the event loop."""

    def load(self, name: str, path: str) -> dict[str, Any]:
        """Serve a variant, in the place of one that has the name already; return it in JSON, with ``replaced``.

        Running requests finish with the earlier one.

        Args:
            path: its folder, below ``--experts-dir``.

        Raises:
            RequestRefusedError: it can't be served; what was served before still is.
        """

    def unload(self, name: str) -> None:
        """Serve a variant no more; its running requests finish.

        Raises:
            UnknownVariantError: there is no such variant.
        """

    def folders(self) -> list[str] | None:
        """Return the paths that may be loaded, below ``--experts-dir``; None without such a folder.

        Raises:
            RequestRefusedError: it can't be read.
        """

    def overview(self) -> dict[str, Any]:
        """Return all variants, their folder, and the base model's fingerprint, in JSON."""


class AdapterLoader(Protocol):
    """Loads adapters that requests name. Every call may block, so make it off the event loop."""

    def load(self, name: str) -> bool:
        """Serve the adapter in the folder of a name, unless one is served already; return False if there is none.

        Raises:
            RequestRefusedError: there is one that can't be served.
        """


class AdapterAdministration(Protocol):
    """Loads and unloads adapters. Every call may block, so make it off the event loop."""

    def load(self, name: str, path: str, *, replace: bool = False, examples: AdapterExamples | None = None) -> bool:
        """Serve an adapter under a name; return True if it took the place of another.

        Args:
            path: its folder, below ``--adapters-dir``.
            replace: whether the name may have an adapter already; its running requests finish with that.
            examples: for which prompts a router chooses it; None for what its folder says.

        Raises:
            RequestRefusedError: it can't be served; what was served before still is.
        """

    def unload(self, name: str) -> None:
        """Serve an adapter no more; its running requests finish.

        Raises:
            UnknownAdapterError: there is no such adapter.
        """

    def folders(self) -> list[str] | None:
        """Return the paths that may be loaded, below ``--adapters-dir``; None without such a folder.

        Raises:
            RequestRefusedError: it can't be read.
        """

    def overview(self) -> dict[str, Any]:
        """Return all adapters, their folder and the memory for them, in JSON."""
