"""Consistency of the Kubernetes manifests with the image and the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from expert_store import ExpertStore
from server.engine.engine_statistics import EngineStatistics
from server.observability.metrics import Metrics
from tests.docker.files import FOLDER, PROJECT, read_image, read_manifest, settings_of
from tests.expert_store.files import make_catalog
from tests.made_up_memory import made_up_memory
from tests.server.live.conftest import FakeServer

IMAGE = read_image()
STATEFUL_SET = read_manifest("base/statefulset.yaml")["spec"]
POD: dict[str, Any] = STATEFUL_SET["template"]["spec"]
LABELS: dict[str, str] = STATEFUL_SET["template"]["metadata"]["labels"]
(CONTAINER,) = POD["containers"]
(PORT,) = CONTAINER["ports"]
ENVIRONMENT = {variable["name"]: variable.get("value", "1") for variable in CONTAINER["env"]}  # such as 1 CPU
MOUNTS: dict[str, str] = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}


OPTIONAL = {"podmonitor.yaml", "autoscaler.yaml", "adapter-values.yaml", "rayservice.yaml"}  # applied one by one
RESOURCES: list[str] = read_manifest("base/kustomization.yaml")["resources"]


def validate(manifest: dict[str, Any], version: str = "latest") -> None:
    import kubernetes_validate  # noqa: PLC0415  its import takes two seconds

    version = kubernetes_validate.latest_version() if version == "latest" else version
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoscaler.yaml", *(f"base/{name}" for name in RESOURCES)])
@pytest.mark.parametrize("version", ["1.30", "latest"])
def test_manifest_is_valid(name: str, version: str) -> None:
    validate(read_manifest(name), version)


def test_environment_holds_settings_of_the_server() -> None:
    assert settings_of(IMAGE.environment | ENVIRONMENT).threads == 1


def test_service_links_do_not_set_the_port() -> None:
    # With service links, a service named greenroom sets GREENROOM_PORT=tcp://10.0.0.1:80.
    assert POD["enableServiceLinks"] is False


def test_command_line_is_a_command_of_the_image() -> None:
    assert CONTAINER["args"] == IMAGE.command
    assert "command" not in CONTAINER  # the entry point is the image's


def test_tag_is_the_version() -> None:
    assert CONTAINER["image"] == f"greenroom:{PROJECT['version']}"


def test_termination_grace_period_is_long_enough_to_drain() -> None:
    settings = settings_of(IMAGE.environment | ENVIRONMENT)
    command, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert POD["terminationGracePeriodSeconds"] >= int(seconds) + settings.shutdown_timeout + 10


def test_user_is_that_of_the_image_and_owns_the_volumes() -> None:
    context = POD["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == IMAGE.user
    assert str(context["fsGroup"]) == IMAGE.user.partition(":")[2]
    assert context["runAsNonRoot"]


def test_root_is_read_only_and_writable_folders_are_volumes() -> None:
    context = CONTAINER["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    volumes = {volume["name"] for volume in POD["volumes"]}
    claims = {claim["metadata"]["name"] for claim in STATEFUL_SET["volumeClaimTemplates"]}
    assert MOUNTS["/tmp"] in volumes
    assert MOUNTS["/cache"] in claims
    assert set(MOUNTS.values()) == volumes | claims


def test_keys_are_files_of_a_mounted_secret() -> None:
    settings = settings_of(IMAGE.environment | ENVIRONMENT)
    (secret,) = [volume for volume in POD["volumes"] if "secret" in volume]
    for file in (settings.api_key_file, settings.admin_api_key_file):
        assert file is not None
        assert MOUNTS[str(file.parent)] == secret["name"]


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probes_succeed_when_a_model_is_loaded(live: FakeServer, probe: str) -> None:
    get = CONTAINER[probe]["httpGet"]
    headers = {header["name"]: header["value"] for header in get["httpHeaders"]}
    assert httpx.get(f"http://127.0.0.1:{live.port}{get['path']}", headers=headers).status_code == 200
    assert get["port"] == PORT["name"]


def test_only_readiness_depends_on_the_model() -> None:
    paths = {probe: CONTAINER[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}


def test_service_and_monitor_find_the_pods() -> None:
    service, monitor = read_manifest("base/service.yaml"), read_manifest("podmonitor.yaml")
    assert service["spec"]["selector"] == monitor["spec"]["selector"]["matchLabels"] == LABELS
    assert STATEFUL_SET["selector"]["matchLabels"] == LABELS
    assert STATEFUL_SET["serviceName"] == service["metadata"]["name"]
    assert [port["targetPort"] for port in service["spec"]["ports"]] == [PORT["name"]]
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [PORT["name"]]
    assert PORT["containerPort"] == IMAGE.port


def test_autoscaler_uses_a_metric_of_the_server(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    text = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory()).render().decode()
    store.close()
    scaler = read_manifest("autoscaler.yaml")["spec"]
    (metric,) = [metric["pods"]["metric"]["name"] for metric in scaler["metrics"]]
    (rule,) = read_manifest("adapter-values.yaml")["rules"]["custom"]
    assert f"# TYPE {metric} gauge" in text
    assert rule["name"]["matches"] == metric
    assert rule["seriesQuery"].startswith(f"{metric}{{")
    assert scaler["scaleTargetRef"]["kind"] == "StatefulSet"


def test_base_has_all_manifests_that_every_cluster_takes() -> None:
    folder = FOLDER / "kubernetes"
    assert {path.name for path in (folder / "base").glob("*.yaml")} - set(RESOURCES) == {"kustomization.yaml"}
    assert {path.name for path in folder.glob("*.yaml")} - OPTIONAL == {"kustomization.yaml"}
    assert read_manifest("kustomization.yaml")["resources"] == ["base"]


@pytest.mark.parametrize("name", ["disruption-budget.yaml", "network-policy.yaml"])
def test_policies_select_the_pods(name: str) -> None:
    spec = read_manifest(f"base/{name}")["spec"]
    assert spec.get("selector", spec.get("podSelector"))["matchLabels"] == LABELS


def test_disruption_budget_lets_a_single_replica_be_evicted() -> None:
    assert read_manifest("base/disruption-budget.yaml")["spec"]["maxUnavailable"] == 1


def test_network_policy_opens_the_port_of_the_server_and_nothing_else() -> None:
    spec = read_manifest("base/network-policy.yaml")["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert [port for rule in spec["ingress"] for port in rule["ports"]] == [{"port": PORT["name"]}]
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 443}


def test_gpu_overlay_gives_each_replica_a_gpu() -> None:
    overlay, patch = read_manifest("gpu/kustomization.yaml"), read_manifest("gpu/statefulset.yaml")
    base = read_manifest("base/statefulset.yaml")
    assert (overlay["resources"], [each["path"] for each in overlay["patches"]]) == (["../base"], ["statefulset.yaml"])
    assert (patch["kind"], patch["metadata"]["name"]) == (base["kind"], base["metadata"]["name"])
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] == CONTAINER["name"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert settings_of({variable["name"]: variable["value"] for variable in container["env"]}).device == "cuda"


def test_gpu_overlay_is_valid_once_it_is_merged() -> None:
    merged = merge(read_manifest("base/statefulset.yaml"), read_manifest("gpu/statefulset.yaml"))
    validate(merged)
    (container,) = merged["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == CONTAINER["resources"]["limits"] | {"nvidia.com/gpu": "1"}
    assert len(container["env"]) == len(CONTAINER["env"]) + 1


def test_gpu_overlay_takes_the_cuda_image() -> None:
    (image,) = read_manifest("gpu/kustomization.yaml")["images"]
    assert (image["name"], image["newTag"]) == ("greenroom", f"{PROJECT['version']}-cuda")


def merge(base: Any, patch: Any) -> Any:
    """Merge a patch as kustomize does: objects by key, lists of named items by name, all else replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merge(base.get(key), value) for key, value in patch.items()}
    if isinstance(base, list) and all("name" in item for item in [*base, *patch]):
        items = {item["name"]: item for item in base}
        return list((items | {item["name"]: merge(items.get(item["name"]), item) for item in patch}).values())
    return patch
