"""Consistency of the compose files with the image, the server and each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.files import FOLDER, read_compose, read_image, settings_of

pytestmark = pytest.mark.compose

COMPOSE = read_compose("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVER = SERVICES["greenroom"]
IMAGE = read_image()


needs_compose = pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")


def configured(overlays: tuple[str, ...] = (), **variables: str) -> dict[str, Any]:
    """Return the server's service as docker-compose reads the files, with variables in the environment."""
    files = ["compose.yaml", *(f"compose.{name}.yaml" for name in overlays)]
    options = [option for file in files for option in ("--file", str(FOLDER / file))]
    done = subprocess.run(
        ["docker-compose", *options, "--env-file", os.devnull, "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    service: dict[str, Any] = json.loads(done.stdout)["services"]["greenroom"]
    return service


@needs_compose
@pytest.mark.parametrize("overlays", [(), ("keys",), ("cuda",), ("keys", "cuda")])
def test_compose_accepts_the_files(overlays: tuple[str, ...]) -> None:
    assert configured(overlays)["command"] == ["serve"]


@needs_compose
def test_variables_of_compose_become_settings_of_the_server() -> None:
    variables = {
        "GREENROOM_ADMIN_API_KEY": "mine",
        "GREENROOM_MEMORY": "20GiB",
        "GREENROOM_HOST_EXPERT_MEMORY": "50%",
        "GREENROOM_KV_CACHE_MEMORY": "2GiB",
        "GREENROOM_MAX_MODEL_LEN": "4096",
    }
    service = configured(**variables)
    assert {name: service["environment"][name] for name in variables} == variables
    assert settings_of(service["environment"]).max_model_len == 4096


@needs_compose
def test_a_folder_of_models_is_mounted(tmp_path: Path) -> None:
    service = configured(MODEL="/models/packed", MODELS_DIR=str(tmp_path))
    (mount,) = [volume for volume in service["volumes"] if volume["target"] == "/models"]
    assert (mount["type"], mount["source"]) == ("bind", str(tmp_path))
    assert service["command"] == ["serve", "/models/packed"]


@needs_compose
def test_memory_limit_is_a_variable() -> None:
    assert configured(MEMORY_LIMIT="24g")["mem_limit"] == str(24 << 30)


@needs_compose
def test_keys_in_files_replace_the_default_admin_key() -> None:
    settings = settings_of(configured(("keys",))["environment"])
    assert (settings.admin_api_key, str(settings.admin_api_key_file)) == ((), "/run/secrets/admin-api-keys")


def test_example_names_every_variable_with_its_default() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    taken = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    taken |= {name: "" for name, value in SERVER["environment"].items() if value is None}
    example = (FOLDER / ".env.example").read_text()
    assert dict(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE)) == taken


def test_dashboard_can_be_opened_with_the_default_admin_key() -> None:
    (key,) = settings_of(SERVER["environment"]).admin_keys()
    (address,) = re.findall(r"http://localhost:8000/\S*", (FOLDER / "compose.yaml").read_text())
    assert address == f"http://localhost:8000/#key={key};"


@pytest.mark.parametrize("name", SERVICES)
def test_memory_of_each_service_is_limited(name: str) -> None:
    assert re.fullmatch(r"\d+g", SERVICES[name]["mem_limit"])


def test_there_are_three_services() -> None:
    assert set(SERVICES) == {"greenroom", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert SERVICES[name]["ports"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_published_port_is_that_of_the_image() -> None:
    assert [int(port.rsplit(":", 1)[1]) for port in SERVER["ports"]] == [IMAGE.port]


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_has_a_health_check_and_waits_for_healthy_ones(name: str) -> None:
    assert name == "greenroom" or "healthcheck" in SERVICES[name]  # the server's is in the image
    assert all(other["condition"] == "service_healthy" for other in SERVICES[name].get("depends_on", {}).values())


def test_monitoring_starts_without_the_server() -> None:
    assert not [name for name in ("prometheus", "grafana") if "greenroom" in SERVICES[name].get("depends_on", {})]


def test_build_takes_arguments_of_the_image() -> None:
    cuda = read_compose("compose.cuda.yaml")["services"]["greenroom"]
    assert {*SERVER["build"]["args"], *cuda["build"]["args"]} <= set(IMAGE.arguments)
    assert (FOLDER / SERVER["build"]["context"] / SERVER["build"]["dockerfile"]).is_file()


def test_server_allows_the_host_name_that_prometheus_scrapes() -> None:
    settings = settings_of({**IMAGE.environment, **SERVER["environment"]})
    prometheus = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    targets = [
        target
        for job in prometheus["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    ]
    assert targets == [f"{name}:{settings.port}" for name in settings.allowed_host if name != "localhost"]


def test_grafana_finds_prometheus_and_its_dashboards_where_they_are_mounted() -> None:
    provisioning = FOLDER / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    providers = yaml.safe_load((provisioning / "dashboards" / "greenroom.yml").read_text())["providers"]
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in SERVICES["grafana"]["volumes"]}
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    port = SERVICES["prometheus"]["ports"][0].rsplit(":", 1)[1]
    assert [source["url"] for source in sources] == [f"http://prometheus:{port}"]
    assert {provider["options"]["path"] for provider in providers} <= set(mounts)
    assert (FOLDER / mounts[str(home.parent)] / home.name).is_file()


def test_stop_grace_period_is_long_enough_to_drain() -> None:
    settings = settings_of({**IMAGE.environment, **SERVER["environment"]})
    seconds = re.fullmatch(r"(\d+)s", SERVER["stop_grace_period"])
    assert seconds is not None
    assert int(seconds[1]) >= settings.shutdown_timeout + 10


def test_volumes_of_the_image_have_names() -> None:
    mounts = dict(mount.split(":")[::-1] for mount in SERVER["volumes"])
    assert list(mounts) == IMAGE.volumes
    assert set(mounts.values()) <= set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_mounted_folders_exist_and_are_read_only(name: str) -> None:
    mounts = [mount.split(":") for mount in SERVICES[name]["volumes"] if mount.startswith("./")]
    assert mounts
    assert all((FOLDER / source).is_dir() and rest == ["ro"] for source, _, *rest in mounts)


def test_grafana_has_no_accounts() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not [name for name in environment if "PASSWORD" in name]


def test_keys_come_from_mounted_secrets() -> None:
    overlay = read_compose("compose.keys.yaml")
    server = overlay["services"]["greenroom"]
    settings = settings_of(server["environment"])
    files = {str(settings.api_key_file), str(settings.admin_api_key_file)}
    assert files == {f"/run/secrets/{name}" for name in server["secrets"]}
    assert set(server["secrets"]) == set(overlay["secrets"])
    folders = {secret["file"].split("/")[0] + "/" for secret in overlay["secrets"].values()}
    assert folders <= set((FOLDER / ".gitignore").read_text().split())
