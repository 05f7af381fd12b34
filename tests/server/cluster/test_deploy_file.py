"""The file that Serve deploys."""

from pathlib import Path

import pytest

from server.cluster.deploy_file import IMPORT_PATH, describe, read, write
from server.cluster.options import ClusterOptions
from server.settings import SettingsError

OPTIONS = ClusterOptions.checked({"memory": "2GiB", "replicas": 3, "settings": {"dtype": "float32"}})


def test_a_written_file_is_read_as_it_was_described(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(write(describe(OPTIONS, "127.0.0.1", 8000)))
    content, options = read(file)
    assert options == OPTIONS
    assert content["http_options"]["port"] == 8000


def test_proxies_listen_where_host_rules_expect_them() -> None:
    content = describe(OPTIONS, "0.0.0.0", 80)
    (application,) = content["applications"]
    assert content["http_options"]["host"] == application["args"]["address"] == "0.0.0.0"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("a: [", "is no YAML"),
        ("applications: []", "has no application with import_path"),
        ("applications: 5", "has no application with import_path"),
        ("- 1", "has no application with import_path"),
        (f"applications: [{{import_path: '{IMPORT_PATH}', args: [1]}}]", "args must be names with values"),
    ],
)
def test_a_file_that_can_not_be_used_is_refused_by_name(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "bad.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=told) as caught:
        read(file)
    assert str(file) in str(caught.value)
