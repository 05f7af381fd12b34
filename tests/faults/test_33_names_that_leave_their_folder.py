"""Names and paths of variants and adapters that lead out of their folder: refused by name, and nothing is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.adapters import write_adapter
from tests.e2e.processes import Server, serving
from tests.server.model.variants import other, read_tensors, save_variant

pytestmark = pytest.mark.slow

WIDTH = 192  # of the bundled model
ROUTES = {  # the names of the fields for name and path
    "/v1/experts/load": ("name", "path"),
    "/v1/load_lora_adapter": ("lora_name", "lora_path"),
}
NAMES = ["../law", "/etc/passwd", "%2e%2e/law", "%2e%2e", "law\0", "..\\law", "", "x" * 5000, "law\n", "\ud800"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of variants and adapters, beside others that could be served but are outside."""
    from server.model.checkpoint.locate import BUNDLED  # noqa: PLC0415  it loads torch

    outside = tmp_path_factory.mktemp("models")
    root = outside / "served"
    for folder in (root, outside / "outer"):
        save_variant(folder / "law", other(read_tensors(BUNDLED), lambda name: "layers.5.mlp.experts.0." in name))
        write_adapter(folder / "adapter", inputs=WIDTH)
        write_adapter(folder / "law", inputs=WIDTH)
    (root / "link").symlink_to(outside / "outer" / "law")
    (root / "links").mkdir()
    for file in (outside / "outer" / "law").iterdir():
        (root / "links" / file.name).symlink_to(file)
    (root / "loop").symlink_to(root / "loop")
    shutil.copytree(root / "law", root / "%2e%2e")  # a name like any other for a folder
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    folders = ("--experts-dir", str(root), "--adapters-dir", str(root), "--adapter-memory", "8MiB")
    with serving(*folders, "--dtype", "float32") as running:
        yield running


def models(server: Server) -> list[str]:
    return [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]


def check_is_refused(server: Server, route: str, param: str, **body: str) -> None:
    before = models(server)
    answer = httpx.post(f"{server.url}{route}", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert models(server) == before
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "path",
    [
        "../outer/law",
        "law/../../outer/law",
        "/etc",
        "%2e%2e/outer/law",
        "..\\outer\\law",
        "law\0/../../outer/law",
        "link",
        "links",
        "loop",
        "./link/.",
        "x" * 5000,
        "",
        ".",
    ],
)
def test_a_path_out_of_the_folder_is_refused(server: Server, route: str, path: str) -> None:
    name_field, path_field = ROUTES[route]
    check_is_refused(server, route, path_field, **{name_field: "new", path_field: path})


def test_an_absolute_path_beside_the_folder_is_refused(server: Server, root: Path) -> None:
    for route, (name_field, path_field) in ROUTES.items():
        for path in (root.parent / "outer" / "law", Path(f"{root}-other") / "law"):
            check_is_refused(server, route, path_field, **{name_field: "new", path_field: str(path)})


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_name_that_is_a_path_is_refused(server: Server, route: str, name: str) -> None:
    name_field, path_field = ROUTES[route]
    check_is_refused(server, route, name_field, **{name_field: name, path_field: "law"})


@pytest.mark.parametrize("name", ["%2e%2e", "%2e%2e%2f%2e%2e", "..%5claw", "%00", "law%0a", "%2fetc"])
def test_what_is_unloaded_or_shown_by_such_a_name_is_not_found(server: Server, name: str) -> None:
    for method, path in (("DELETE", f"/v1/experts/variants/{name}"), ("GET", f"/v1/models/{name}")):
        answer = httpx.request(method, f"{server.url}{path}")
        assert answer.status_code in {404, 405}, (path, answer.text)
    answer = httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": name})
    assert answer.status_code == 404


def test_a_folder_whose_name_looks_encoded_is_a_folder_like_others(server: Server) -> None:
    """A path is taken as it is; nothing decodes it."""
    answer = httpx.post(f"{server.url}/v1/load_lora_adapter", json={"lora_name": "odd", "lora_path": "%2e%2e"})
    assert answer.status_code == 200
    assert "odd" in models(server)
