"""Options of a cluster."""

import pytest

from server.cluster.options import ClusterOptions, check_proxy, settings_of
from server.settings import SettingsError


def test_threads_and_memory_of_a_replica_are_those_of_its_resources() -> None:
    budget = ClusterOptions.checked({"memory": "2GiB", "cpus": 3}).budget
    assert (budget.threads, budget.memory.nbytes) == (3, 2 << 30)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "auto")])
def test_a_replica_without_a_gpu_runs_on_the_cpu(gpus: int, device: str) -> None:
    assert ClusterOptions.checked({"memory": "2GiB", "gpus": gpus}).budget.device == device


def test_a_fraction_of_a_core_is_one_thread() -> None:
    assert ClusterOptions.checked({"memory": "2GiB", "cpus": 0.5}).budget.threads == 1


def test_the_router_never_holds_a_request_that_the_queue_of_a_replica_has_room_for() -> None:
    settings = {"max_running_requests": 4, "max_queued_requests": 8}
    assert ClusterOptions.checked({"memory": "2GiB", "settings": settings}).max_ongoing_requests == 12


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "args.memory: it is missing; say what each replica may take"),
        ({"memory": "50%"}, "args.memory: 50% is no number of bytes"),
        ({"memory": "2GiB", "replicas": 0}, "args.replicas"),
        ({"memory": "2GiB", "replicas": 3, "max_replicas": 2}, "args.max_replicas: 2 is less than replicas, 3"),
        ({"memory": "2GiB", "settings": {"port": 1}}, "args.settings.port: in a cluster, this is http_options.port"),
        ({"memory": "2GiB", "settings": {"no_such": 1}}, "no_such"),
        ({"memory": "2GiB", "settings": {"device": "cuda"}}, "args.settings.device: a replica has no GPU; add gpus: 1"),
    ],
)
def test_options_that_can_not_be_used_are_named(values: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told.replace("(", r"\(")):
        ClusterOptions.checked(values)


def test_clients_behind_haproxy_are_no_administrators_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    check_proxy(settings_of({}))
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(SettingsError, match="admin_api_key_file"):
        check_proxy(settings_of({}))
    check_proxy(settings_of({"admin_api_key": ["secret"]}))
