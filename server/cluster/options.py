"""Options of a cluster: what ``args`` may hold in the file that Serve deploys."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.settings import ServeSettings, SettingsError, load_settings

RUNNING = "max_running_requests"
LOOK_BACK = 0.4  # of ``scale_up_seconds``: loads are means over it
_REASONS = {"missing": "it is missing", "extra_forbidden": "there is no such option"}  # where pydantic's are unclear
# Settings of the socket and of the whole process, which Serve has in a cluster.
OTHERS = {"host": "http_options.host", "port": "http_options.port", "memory": "memory"}


class ClusterOptions(BaseModel):
    """Options of a cluster.

    Attributes:
        model: as on the command line of ``greenroom serve``; None for the bundled one.
        memory: what each replica may take, such as ``12GiB``.
        cpus: of each replica, which are its threads.
        max_replicas: the most that autoscaling makes; None without autoscaling.
        scale_up_seconds: for which there must be too few replicas before one is added, and ``scale_down_seconds`` too
            many before one is stopped.
        surge_percent: replicas that an update may add while it runs, in percent, rounded up: a new one then starts
            before an old one is stopped.
        address: where Serve's proxies listen.
        drain_seconds: time for running requests when a replica is stopped.
        routing: what a replica is chosen by: all that it holds, cached prefixes or resident experts with its load, or
            the load of two alone; ``round-robin`` for comparison.
        settings: further settings of ``greenroom serve``, by the names in its TOML file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    memory: str
    replicas: int = Field(2, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    scale_up_seconds: float = Field(30.0, ge=0)
    scale_down_seconds: float = Field(600.0, ge=0)
    cpus: float = Field(2, gt=0)
    gpus: float = Field(0, ge=0)
    ingresses: int = Field(1, ge=1)
    ingress_cpus: float = Field(0, ge=0)
    surge_percent: int = Field(0, ge=0, le=100)
    address: str = "127.0.0.1"
    drain_seconds: float = Field(120.0, gt=0)
    routing: Literal["holdings", "prefix", "signature", "two-choices", "round-robin"] = "holdings"
    settings: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Check the options of a file.

        Raises:
            SettingsError: one can't be used; the message names it.
        """
        try:
            options = cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            hint = "; say what each replica may take, such as memory: 12GiB" if name == "memory" else ""
            reason = _REASONS.get(first["type"], first["msg"].removeprefix("Value error, "))
            raise SettingsError(f"args.{name}: {reason}{hint}") from error
        for name, place in OTHERS.items():
            if name in options.settings:
                raise SettingsError(f"args.settings.{name}: in a cluster, this is {place}; move it there")
        if str(options.settings.get("device", "")).startswith("cuda") and not options.gpus:
            raise SettingsError("args.settings.device: a replica has no GPU; add gpus: 1 to args")
        if options.max_replicas is not None and options.max_replicas < options.replicas:
            raise SettingsError(f"args.max_replicas: {options.max_replicas} is less than replicas, {options.replicas}")
        if options.budget.memory.nbytes is None:
            raise SettingsError(f"args.memory: {options.memory} is no number of bytes; write one such as 12GiB")
        return options

    @property
    def budget(self) -> ServeSettings:
        """The settings of a replica."""
        return settings_of(self.engine_settings())

    @property
    def memory_bytes(self) -> int:
        """Bytes of each replica, which Ray places it by."""
        return self.budget.memory.resolve(0, 0)

    @property
    def most_replicas(self) -> int:
        """The most replicas that there may be, those of an update aside."""
        return self.max_replicas or self.replicas

    @property
    def surging_replicas(self) -> int:
        """Replicas that an update may add while it runs."""
        return math.ceil(self.most_replicas * self.surge_percent / 100)

    @property
    def max_ongoing_requests(self) -> int:
        """The most requests that a replica runs and queues."""
        return self.budget.max_running_requests + self.budget.max_queued_requests

    @property
    def max_queued_requests(self) -> int:
        """The most requests of an ingress that wait for a replica."""
        return self.budget.max_queued_requests

    def engine_settings(self) -> dict[str, Any]:
        """Return the settings of a replica: its memory, its threads and its device are those of its resources.

        Ray hides no GPU from a replica that has none, so that all of them would use the first.
        """
        device = {} if self.gpus else {"device": "cpu"}
        return {"threads": max(1, int(self.cpus)), **device, **self.settings, "memory": self.memory}

    def replicas_of_engine(self) -> dict[str, Any]:
        """Return the options of the engine's deployment that say how many replicas there are."""
        if self.max_replicas is None:
            return {"num_replicas": self.replicas}
        look_back = max(1.0, LOOK_BACK * self.scale_up_seconds)
        return {
            "autoscaling_config": {
                "min_replicas": self.replicas,
                "max_replicas": self.max_replicas,
                "metrics_interval_s": look_back / 2,
                "look_back_period_s": look_back,
                "upscale_delay_s": self.scale_up_seconds,
                "downscale_delay_s": self.scale_down_seconds,
                "policy": {"policy_function": "server.cluster.autoscaling:decide"},
            }
        }


def settings_of(values: Mapping[str, Any]) -> ServeSettings:
    """Return the settings of a cluster's file, by the names of the server's TOML file.

    Raises:
        SettingsError: there is no such setting, or a value can't be used.
    """
    for name in values:
        if name not in ServeSettings.model_fields:
            raise SettingsError(f"args.settings.{name}: there is no such setting; see `greenroom serve --help`")
    return load_settings(values, {}, None)


def uses_ha_proxy() -> bool:
    """Return True if Serve runs HAProxy in place of its own proxies."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def check_proxy(settings: ServeSettings) -> None:
    """Check that the ingress can tell who is an administrator.

    Raises:
        SettingsError: it can't.
    """
    if uses_ha_proxy() and not settings.admin_keys():
        raise SettingsError(
            "RAY_SERVE_ENABLE_HA_PROXY=1 hides the addresses of clients, so that any might be an administrator: set "
            "args.settings.admin_api_key_file"
        )
