"""The command `greenroom` with models of the hub, whose download goes on while they are served."""

from __future__ import annotations

from pathlib import Path

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.hub import serving_hub, wait_for
from tests.e2e.processes import serving, total
from tests.e2e.test_web_model import FEW, complete

MODEL = "somebody/some-model"
TOKEN = "hf_" + "a" * 34
ALONE = ("--complete-download", "off", "--prefetch", "off")


def test_the_first_answer_comes_before_all_of_it_was_sent_and_is_that_of_the_same_files_on_a_disk(
    tmp_path: Path,
) -> None:
    with serving_hub(MODEL, BUNDLED) as hub:
        environment = hub.environment(tmp_path) | {"HF_TOKEN": TOKEN}
        cache = ("--disk-cache", str(tmp_path / "experts"))  # so that nothing is sent twice
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


def test_a_completed_download_is_served_again_without_network(tmp_path: Path) -> None:
    with serving_hub(MODEL, BUNDLED) as hub:
        environment = hub.environment(tmp_path)
        with serving(MODEL, *FEW, environment=environment) as server:
            text = complete(server, MODEL)
            wait_for(lambda: hub.is_in_cache(tmp_path, "model.safetensors"))
            remote = server.total("expert_lookups_total", 'tier="remote"')
            assert complete(server, MODEL) == text
            metrics = server.metrics()
            assert total(metrics, "expert_lookups_total", 'tier="remote"') == remote
            assert total(metrics, "expert_lookups_total", 'tier="disk"') > 0
            assert metrics["greenroom_download_bytes"] == metrics["greenroom_download_total_bytes"]
    with serving(MODEL, *FEW, environment={**environment, "HF_HUB_OFFLINE": "1"}) as server:
        assert complete(server, MODEL) == text
