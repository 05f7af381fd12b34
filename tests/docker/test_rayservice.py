"""Consistency of KubeRay's manifest with Kubernetes, Ray Serve, the image and the server."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from server.cluster.deploy_file import IMPORT_PATH
from server.cluster.local_node import SERVE_VARIABLES
from server.cluster.options import ClusterOptions
from tests.docker.files import PROJECT, read_image, read_manifest
from tests.docker.test_kubernetes import validate

SPEC: dict[str, Any] = read_manifest("rayservice.yaml")["spec"]
CLUSTER: dict[str, Any] = SPEC["rayClusterConfig"]
TEMPLATES = [CLUSTER["headGroupSpec"]["template"], *(each["template"] for each in CLUSTER["workerGroupSpecs"])]
PODS: list[dict[str, Any]] = [template["spec"] for template in TEMPLATES]
SERVE: dict[str, Any] = yaml.safe_load(SPEC["serveConfigV2"])
(APPLICATION,) = SERVE["applications"]
OPTIONS = ClusterOptions.checked(APPLICATION["args"])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.30", "latest"])
@pytest.mark.parametrize("index", range(len(TEMPLATES)))
def test_pods_are_valid(index: int, version: str) -> None:
    template = {**TEMPLATES[index], "metadata": {**TEMPLATES[index]["metadata"], "name": "greenroom"}}
    validate({"apiVersion": "v1", "kind": "Pod", **template}, version)


def test_application_is_the_one_that_the_package_builds() -> None:
    assert APPLICATION["import_path"] == IMPORT_PATH


def test_every_call_of_ray_needs_a_token() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}


def test_an_old_cluster_outlives_the_longest_stream() -> None:
    assert SPEC["rayClusterDeletionDelaySeconds"] > OPTIONS.drain_seconds


def test_pods_are_not_killed_while_their_replica_drains() -> None:
    assert all(pod["terminationGracePeriodSeconds"] > OPTIONS.drain_seconds for pod in PODS)


def test_versions_are_those_of_the_project() -> None:
    (pinned,) = PROJECT["optional-dependencies"]["ray"]
    assert f">={CLUSTER['rayVersion'].removesuffix('.0')}," in pinned
    assert {pod["containers"][0]["image"] for pod in PODS} == {f"greenroom:{PROJECT['version']}-ray"}


def test_serve_has_the_variables_of_a_local_cluster() -> None:
    for pod in PODS:
        variables = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
        assert variables == SERVE_VARIABLES


def test_user_is_that_of_the_image() -> None:
    users = {f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" for pod in PODS}
    assert users == {read_image().user}


def test_a_worker_has_room_for_its_replica() -> None:
    limits = PODS[-1]["containers"][0]["resources"]["limits"]
    assert int(limits["memory"].removesuffix("Gi")) << 30 > OPTIONS.memory_bytes
    assert float(limits["cpu"]) >= OPTIONS.cpus


def test_keys_are_mounted_where_the_settings_expect_them() -> None:
    mounts = {mount["mountPath"] for mount in PODS[-1]["containers"][0]["volumeMounts"]}
    for name in ("api_key_file", "admin_api_key_file"):
        assert OPTIONS.settings[name].rpartition("/")[0] in mounts
