"""The command `greenroom` with models of the hub, whose download goes on while they are served."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.hub import serving_hub, wait_for
from tests.e2e.processes import Server, serving, total
from tests.e2e.test_web_model import FEW, complete, failure_of

MODEL = "somebody/some-model"
TOKEN = "hf_" + "a" * 34
OTHERS = ("ACT I. SCENE", "Boil the rice", '{"a": 1}')  # prompts whose experts are partly others
UNREADABLE = r"expert \d+ of layer \d can't be read; see the log"
ALONE = ("--complete-download", "off", "--prefetch", "off")
SIZE = ("--disk-cache-size", "64MiB")  # however full the disk is


def write_shards(folder: Path) -> list[str]:
    """Write the bundled model in two files with an index, and return their names."""
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = sorted(load_file(BUNDLED / "model.safetensors").items())
    names = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    parts = dict(zip(names, (dict(tensors[::2]), dict(tensors[1::2])), strict=True))
    for name, part in parts.items():
        save_file(part, folder / name)
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return names


def first_failure(server: Server) -> str:
    return next(filter(None, (failure_of(server, MODEL, prompt) for prompt in OTHERS)), "")


def test_the_first_answer_comes_before_all_of_it_was_sent_and_is_that_of_the_same_files_on_a_disk(
    tmp_path: Path,
) -> None:
    with serving_hub(MODEL, BUNDLED) as hub:
        environment = hub.environment(tmp_path) | {"HF_TOKEN": TOKEN}
        cache = ("--disk-cache", str(tmp_path / "experts"), *SIZE)  # so that nothing is sent twice
        with serving(MODEL, *FEW, *ALONE, *cache, environment=environment) as server:
            text = complete(server, MODEL)
            assert hub.sent["model.safetensors"] < 0.8 * (BUNDLED / "model.safetensors").stat().st_size
        assert hub.resolved == ["model.safetensors"]
        assert hub.tokens == {""}
    with serving(*FEW) as local:
        assert complete(local) == text != ""


def test_an_expired_link_is_asked_for_once_more(tmp_path: Path) -> None:
    with serving_hub(MODEL, BUNDLED) as hub:
        with serving(MODEL, *FEW, *ALONE, environment=hub.environment(tmp_path)) as server:
            text = complete(server, MODEL)
            hub.valid_link = 1
            assert complete(server, MODEL) == text
        assert hub.resolved == ["model.safetensors"] * 2


def test_a_completed_download_of_several_files_is_served_again_without_network(tmp_path: Path, hub_cache: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    with serving_hub(MODEL, tmp_path / "shards") as hub:
        environment = hub.environment(hub_cache)
        with serving(MODEL, *FEW, environment=environment) as server:
            text = complete(server, MODEL)
            wait_for(lambda: all(hub.is_in_cache(hub_cache, shard) for shard in shards))
            remote = server.total("expert_lookups_total", 'tier="remote"')
            assert complete(server, MODEL) == text
            metrics = server.metrics()
            assert total(metrics, "expert_lookups_total", 'tier="remote"') == remote
            assert total(metrics, "expert_lookups_total", 'tier="disk"') > 0
            assert metrics["greenroom_download_bytes"] == metrics["greenroom_download_total_bytes"]
            _, _, log = server.interrupt()
            assert re.search(r"trunk (\S+) of \S+ MiB, experts \d+ %, first answer possible", log)
    with serving(MODEL, *FEW, environment={**environment, "HF_HUB_OFFLINE": "1"}) as server:
        assert complete(server, MODEL) == text


def test_the_download_from_a_mirror_without_checksums_is_completed_and_served_again_without_network(
    hub_cache: Path,
) -> None:
    with serving_hub(MODEL, BUNDLED) as hub:
        hub.has_checksums = False
        environment = hub.environment(hub_cache)
        with serving(MODEL, *FEW, environment=environment) as server:
            text = complete(server, MODEL)
            wait_for(lambda: hub.is_in_cache(hub_cache, "model.safetensors"))
            _, _, log = server.interrupt()
    assert "the model is complete on the disk" in log
    assert not re.search(r"trunk 0(\.0)? of|waits|warning", log, re.IGNORECASE)
    with serving(MODEL, *FEW, environment={**environment, "HF_HUB_OFFLINE": "1"}) as server:
        assert complete(server, MODEL) == text


def test_a_download_that_was_killed_is_served_offline_and_goes_on_where_it_was(hub_cache: Path) -> None:
    nbytes = (BUNDLED / "model.safetensors").stat().st_size
    with serving_hub(MODEL, BUNDLED) as hub:
        hub.seconds_per_byte = 2 / nbytes
        environment = hub.environment(hub_cache)
        with serving(MODEL, *FEW, environment=environment) as server:
            wait_for(lambda: hub.sent["model.safetensors"] > 0.7 * nbytes)
            server.process.kill()
        with serving(MODEL, *FEW, environment={**environment, "HF_HUB_OFFLINE": "1"}) as server:
            _, _, log = server.interrupt()
        with serving(MODEL, *FEW, environment=environment):
            wait_for(lambda: hub.is_in_cache(hub_cache, "model.safetensors"))
        assert hub.sent["model.safetensors"] < 1.5 * nbytes
    assert "model.safetensors: it is not on the disk, and HF_HUB_OFFLINE is set" in log


def test_a_start_without_network_serves_a_part_and_the_rest_once_the_network_is_back(tmp_path: Path) -> None:
    with serving_hub(MODEL, BUNDLED) as hub:
        options = (*FEW, *ALONE, "--disk-cache", str(tmp_path / "experts"), *SIZE)
        environment = hub.environment(tmp_path)
        with serving(MODEL, *options, environment=environment) as server:
            text = complete(server, MODEL)
            server.interrupt()
        hub.is_away = True
        with serving(MODEL, *options, environment=environment) as server:
            assert complete(server, MODEL) == text
            assert re.search(UNREADABLE, first_failure(server))
            hub.is_away = False
            assert [failure_of(server, MODEL, prompt) for prompt in OTHERS] == ["", "", ""]


def test_two_servers_share_what_each_has_read(tmp_path: Path) -> None:
    with serving_hub(MODEL, BUNDLED) as hub:
        options = (MODEL, *FEW, *ALONE, "--disk-cache", str(tmp_path / "experts"), *SIZE)
        environment = hub.environment(tmp_path)
        with serving(*options, environment=environment) as one, serving(*options, environment=environment) as other:
            text = complete(one, MODEL)
            before = hub.sent["model.safetensors"]
            assert complete(other, MODEL) == text
            assert other.total("expert_lookups_total", 'tier="disk"') > 0
            assert hub.sent["model.safetensors"] == before


def test_without_network_what_is_on_the_disk_is_served_and_the_rest_fails_by_name(tmp_path: Path) -> None:
    cache = ("--disk-cache", str(tmp_path / "experts"), *SIZE)
    with (
        serving_hub(MODEL, BUNDLED) as hub,
        serving(MODEL, *FEW, *ALONE, *cache, environment=hub.environment(tmp_path)) as server,
    ):
        text = complete(server, MODEL)
        hub.is_away = True
        assert complete(server, MODEL) == text
        assert re.search(UNREADABLE, first_failure(server))
        assert complete(server, MODEL) == text
        hub.is_away = False
        assert [failure_of(server, MODEL, "ACT I. SCENE"), complete(server, MODEL)] == ["", text]
