"""A mirror of the hub whose commits, ETags, checksums or names are paths writes nothing outside of the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session

from server.model.checkpoint.download import download
from server.model.checkpoint.hub_listing import list_upload, remember
from server.model.errors import ModelError
from tests.e2e.hub import Hub, serving_hub

MODEL, OUTSIDE = "somebody/some-model", "../../../x"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A mirror, and a cache three levels down."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    with serving_hub(MODEL, folder) as hub:
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in (
            ("ENDPOINT", hub.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", files),
            ("HF_HUB_CACHE", str(tmp_path / "client" / "a" / "b" / "hub")),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
        ):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield hub
        close_session()


def files_outside(folder: Path) -> list[Path]:
    """Return what is in the client's folders beside the repository's own one in the cache."""
    kept = [folder / "client/a/b/hub" / name for name in ("models--somebody--some-model", ".locks", "CACHEDIR.TAG")]
    found = [path for path in (folder / "client").rglob("*") if path.is_file() or path.is_symlink()]
    return [path for path in found if not any(path.is_relative_to(each) for each in kept)]


HOSTILE: dict[str, tuple[Callable[[Hub], object], str]] = {
    "commit of the list": (lambda hub: setattr(hub, "sha", OUTSIDE), f"'{OUTSIDE}' is not the hash of a commit"),
    "no commit": (lambda hub: setattr(hub, "sha", None), "None is not the hash of a commit"),
    "commit of a file": (lambda hub: setattr(hub, "commit", OUTSIDE), f"'{OUTSIDE}' is not the hash of a commit"),
    "ETag": (
        lambda hub: hub.version_headers.update({".json": {"ETag": f'"{OUTSIDE}"'}}),
        f"config.json what can't be: '{OUTSIDE}' is not the ETag of a file",
    ),
    "ETag of a link": (
        lambda hub: hub.version_headers.update({".json": {"ETag": '"0"', "X-Linked-Etag": f'W/"{OUTSIDE}"'}}),
        f"'{OUTSIDE}' is not the ETag of a file",
    ),
    "checksum": (
        lambda hub: setattr(hub, "checksum", lambda _: OUTSIDE),
        f"tells of {MODEL} what can't be: '{OUTSIDE}' is not a SHA-256",
    ),
    "name": (
        lambda hub: hub.names.update({"config.json": f"{OUTSIDE}.json"}),
        f"'{OUTSIDE}.json' is not the name of a file inside a model",
    ),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_what_is_a_path_is_refused_by_name_and_nothing_is_written_outside(
    hub: Hub, tmp_path: Path, attack: str
) -> None:
    change, words = HOSTILE[attack]
    change(hub)
    with pytest.raises(ModelError) as refused:
        download(MODEL, None)
    assert words in str(refused.value)
    assert "HF_ENDPOINT" in str(refused.value)
    assert files_outside(tmp_path) == []


def test_a_name_that_is_not_downloaded_is_left_out(hub: Hub) -> None:
    (hub.folder / "README.md").touch()
    hub.names["README.md"] = "../README.md"
    listing = list_upload(MODEL, None)
    assert listing is not None
    assert sorted(listing.names) == ["config.json", "model.safetensors"]


def test_a_list_that_was_remembered_with_a_path_is_not_used(hub: Hub, tmp_path: Path) -> None:
    listing = list_upload(MODEL, None)
    assert listing is not None
    remember(listing)
    hub.is_away = True
    assert list_upload(MODEL, None) == listing
    (about,) = tmp_path.rglob("*.listing")
    about.write_text(about.read_text().replace('"config.json"', f'"{OUTSIDE}.json"'))
    assert list_upload(MODEL, None) is None


@pytest.mark.parametrize("weak", ["", "W/"])
def test_a_usual_mirror_is_downloaded_from(hub: Hub, weak: str) -> None:
    hub.version_headers[".json"] = {"ETag": f'{weak}"{"a" * 40}"'}
    folder = download(MODEL, None)
    assert (folder / "config.json").read_text() == "{}"
    assert (folder.parent.parent / "refs" / "main").read_text() == folder.name


def test_a_complete_model_in_the_cache_is_found_while_its_mirror_is_away(hub: Hub) -> None:
    folder = download(MODEL, None)
    hub.is_away = True
    assert download(MODEL, None) == folder
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="does not have all its files, and the hub can't be reached"):
        download(MODEL, None)
