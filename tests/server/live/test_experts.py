"""``/v1/experts`` over a socket, with a real store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from expert_store import ExpertKey, ExpertStore
from server.administration.store_administration import StoreAdministration
from server.api.core.requests.loaded_model import LoadedModel
from server.engine.text.codec import Codec
from tests.expert_store.files import make_catalog
from tests.expert_store.lease_rows import one_row_each
from tests.made_up_memory import made_up_memory
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import LiveServer, serving_model

NUM_LAYERS, NUM_EXPERTS, NUM_SLOTS, LEAST_UNPINNED = 2, 8, 6, 2


@dataclass
class ExpertServer:
    """A server with a fake model whose experts are real files."""

    live: LiveServer
    store: ExpertStore
    url: str

    def get(self, path: str = "") -> httpx.Response:
        return httpx.get(f"{self.url}/v1/experts{path}")

    def post(self, action: str, *experts: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/experts/{action}", json={"experts": list(experts)})

    def changed(self, action: str, *experts: Any) -> int:
        answer = self.post(action, *experts)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["object"], body["requested"]) == (f"experts.{action}", len(experts))
        return int(body["changed"])

    def expert(self, layer: int, expert: int) -> dict[str, Any]:
        body: dict[str, Any] = self.get(f"/{layer}/{expert}").json()
        return body

    def use(self, layer: int, *experts: int) -> None:
        """Run one token through each."""
        with self.store.lease(one_row_each(layer, experts)) as lease:
            assert sorted(key.expert for key, _ in lease) == sorted(experts)


@pytest.fixture(params=[0, 4], ids=["two tiers", "three tiers"])
def server(request: pytest.FixtureRequest, codec: Codec, tmp_path: Path) -> Iterator[ExpertServer]:
    catalog = make_catalog(tmp_path, NUM_LAYERS, NUM_EXPERTS)
    slot_bytes = catalog.layout(0).slot_bytes
    store = ExpertStore(
        catalog, NUM_SLOTS * slot_bytes, device_bytes=request.param * slot_bytes, least_unpinned=LEAST_UNPINNED
    )
    rig = Rig()
    experts = StoreAdministration("fake", store, rig.engine.statistics, made_up_memory())
    rig.engine.start()
    with serving_model(LoadedModel("fake", rig.engine, codec, experts=experts), rig.engine) as live:
        yield ExpertServer(live, store, f"http://127.0.0.1:{live.port}")
    rig.engine.stop()
    store.close()
    store.check_integrity()


def test_every_expert_of_every_layer_is_listed(server: ExpertServer) -> None:
    server.use(0, 3, 5)
    server.use(1, 5)
    answer = server.get()
    body = answer.json()
    assert answer.headers["X-Request-Id"]
    assert (body["object"], body["model"]) == ("experts", "fake")
    assert [layer["layer"] for layer in body["layers"]] == [0, 1]
    experts = {(each["layer"], each["expert"]): each for layer in body["layers"] for each in layer["experts"]}
    assert len(experts) == NUM_LAYERS * NUM_EXPERTS
    used = {place for place, each in experts.items() if each["tokens"]}
    assert used == {(0, 3), (0, 5), (1, 5)} == {place for place, each in experts.items() if each["residency"] != "disk"}
    assert experts[0, 3] == server.expert(0, 3)
    assert set(experts[0, 3]) == {
        "layer", "expert", "variant", "residency", "tokens", "bytes", "pinned", "quarantined",
        "variants",
    }  # fmt: skip
    assert body["loaded_bytes"] == server.store.statistics().loaded_bytes > 0
    assert body["hit_ratio"] == 0
    assert (body["evictions"], body["stall_seconds"] > 0) == (0, True)


def test_tiers_report_their_experts(server: ExpertServer) -> None:
    server.use(0, 1, 2)
    server.changed("pin", [0, 1])
    tiers = server.get().json()["tiers"]
    slot_bytes = server.store.catalog.layout(0).slot_bytes
    assert tiers["disk"] == {"num_experts": 16, "total_bytes": 16 * slot_bytes}
    assert set(tiers["host"]) == {
        "budget_bytes", "num_slots", "slot_bytes", "num_resident", "resident_bytes", "num_pinned",
    }  # fmt: skip
    top = tiers.get("device", tiers["host"])
    assert (top["num_resident"], top["resident_bytes"], top["num_pinned"]) == (2, 2 * slot_bytes, 1)


def test_stream_reports_memory_by_part(server: ExpertServer) -> None:
    with httpx.stream("GET", f"{server.url}/v1/experts/stream", timeout=30) as response:
        _, whole = next(events(response))
    memory = whole["memory"]
    parts = memory["parts"]
    taken = parts.pop("unaccounted")
    beside = {"adapters": 0, "step": 5, "requests": 0, "process": 100}
    assert parts == {"trunk": 300, "experts": 2000, "kv_cache": 40, **beside}
    assert taken > 1 << 20  # of this very process
    assert (memory["budget_bytes"], memory["num_shrinks"], memory["num_grows"], memory["reason"]) == (1 << 30, 0, 0, "")


@pytest.mark.slow
def test_stream_reports_latencies_and_failures(server: ExpertServer) -> None:
    engine = server.live.engine.statistics
    engine.latencies.first_token.observe(0.5)
    engine.latencies.first_token.observe(0.25)
    engine.finished["error"] += 3
    engine.count_step("decode", 1.5)
    with httpx.stream("GET", f"{server.url}/v1/experts/stream", timeout=30) as response:
        _, whole = next(events(response))
    assert whole["first_token"] == {"count": 2, "seconds": 0.75}
    assert whole["inter_token"] == {"count": 0, "seconds": 0}
    assert whole["finished_requests"] == {"stop": 0, "length": 0, "abort": 0, "error": 3, "deadline": 0}
    assert (whole["step_seconds"], whole["num_load_failures"], whole["num_quarantined"]) == (1.5, 0, 0)
    assert whole["uptime_seconds"] > 0


def test_before_any_use_there_is_no_ratio(server: ExpertServer) -> None:
    body = server.get().json()
    assert (body["hit_ratio"], body["optimal_hit_ratio"], body["stall_seconds"]) == (None, None, 0)


@pytest.mark.slow
def test_pins_are_counted_once_and_stay(server: ExpertServer) -> None:
    assert server.changed("pin", [0, 1], [1, 2], [0, 1]) == 2
    assert server.changed("pin", [0, 1]) == 0
    assert server.expert(0, 1)["pinned"]
    server.use(0, 1)
    assert server.changed("evict", [0, 1]) == 0
    assert server.expert(0, 1)["residency"] != "disk"
    assert server.changed("unpin", [0, 1], [0, 7]) == 1
    assert server.changed("unpin", [0, 1]) == 0
    assert server.changed("evict", [0, 1], [0, 1]) == 1
    assert server.changed("evict", [0, 1]) == 0
    assert server.expert(0, 1)["residency"] == "disk"


def test_an_expert_in_use_is_not_evicted(server: ExpertServer) -> None:
    with server.store.lease(one_row_each(1, [4])) as lease:
        assert [key.expert for key, _ in lease] == [4]
        assert server.changed("evict", [1, 4]) == 0
    assert server.changed("evict", [1, 4]) == 1


def test_evictions_say_why_experts_stay(server: ExpertServer) -> None:
    server.changed("pin", [0, 1])
    server.use(0, 1, 2)
    with server.store.lease(one_row_each(1, [4])) as lease:
        assert len(list(lease)) == 1
        body = server.post("evict", [0, 1], [0, 2], [1, 4], [1, 7]).json()
    assert body["changed"] == 1
    assert body["unchanged"] == {"pinned": [[0, 1]], "in_use": [[1, 4]], "not_resident": [[1, 7]]}


def test_only_evictions_list_what_stays(server: ExpertServer) -> None:
    assert "unchanged" not in server.post("unpin", [0, 1]).json()


def test_more_prefetches_than_the_disk_takes_at_once_are_all_begun(server: ExpertServer) -> None:
    num_slots = next(iter(server.store.tiers().values())).num_slots
    assert server.changed("prefetch", *([0, expert] for expert in range(num_slots))) == num_slots
    server.use(0, *range(num_slots))
    assert server.changed("prefetch", *([0, expert] for expert in range(num_slots))) == 0


def test_pins_that_leave_too_little_are_refused_and_nothing_is_pinned(server: ExpertServer) -> None:
    num_slots = next(iter(server.store.tiers().values())).num_slots
    answer = server.post("pin", *([0, expert] for expert in range(num_slots - LEAST_UNPINNED + 1)))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "experts"
    assert f"fewer than {LEAST_UNPINNED} of {num_slots} slots" in error["message"]
    assert "unpin some" in error["message"]
    assert server.get().json()["tiers"]["host"]["num_pinned"] == 0
    assert server.changed("pin", *([0, expert] for expert in range(num_slots - LEAST_UNPINNED))) > 0


def test_a_quarantined_expert_is_marked_and_can_not_be_pinned(server: ExpertServer) -> None:
    server.store._state.quarantined[ExpertKey(0, 2)] = "its checksum is wrong"
    assert server.expert(0, 2)["quarantined"] == "its checksum is wrong"
    answer = server.post("pin", [0, 1], [0, 2])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "cannot read expert 2 of layer 0: its checksum is wrong"
    assert not server.expert(0, 1)["pinned"]
    assert server.changed("prefetch", [0, 2]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/0/8", "/2/0", "/-1/0", "/0/-1", f"/{2**70}/{2**70}"])
def test_an_unknown_expert_is_not_found(path: str, server: ExpertServer) -> None:
    answer = server.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "expert_not_found"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "experts", "sentence"),
    [
        *(
            (action, [[0, 8]], "layer 0 has no expert 8; it has experts 0 to 7")
            for action in ("unpin", "prefetch", "evict")
        ),
        ("pin", [[0, 8]], "layer 0 has no expert 8; it has experts 0 to 7"),
        ("pin", [[0, -1]], "layer 0 has no expert -1; it has experts 0 to 7"),
        ("pin", [[5, 0]], "layer 5 has no routed experts; layers with routed experts are 0 to 1"),
        ("pin", [[0]], "'experts' must hold pairs of integers [layer, expert] only, got [0]."),
        ("pin", [[0, 1.0]], "'experts' must hold pairs of integers [layer, expert] only, got [0, 1.0]."),
        ("pin", [[True, 1]], "'experts' must hold pairs of integers [layer, expert] only, got [True, 1]."),
        ("pin", "all", "'experts' must be a list of at most 32768 pairs [layer, expert]."),
        ("pin", [[0, 0]] * 32769, "'experts' must be a list of at most 32768 pairs [layer, expert]."),
    ],
)
def test_invalid_lists_of_experts_are_refused(
    action: str, experts: object, sentence: str, server: ExpertServer
) -> None:
    answer = httpx.post(f"{server.url}/v1/experts/{action}", json={"experts": experts})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "experts"
    assert answer.json()["error"]["message"] == sentence


def test_a_model_that_is_loading_has_no_experts_yet(server: ExpertServer) -> None:
    server.live.uvicorn.config.app.state.service.model = None
    assert server.get().status_code == 503


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the data of each event of a stream."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line:
            yield name, json.loads(line.removeprefix("data: "))


def until(stream: Iterator[tuple[str, dict[str, Any]]], is_seen: Callable[[dict[str, Any]], bool]) -> None:
    """Read updates until one has changes."""
    assert any(name == "update" and is_seen(data) for name, data in stream)


def test_the_stream_has_a_snapshot_and_then_changes(server: ExpertServer) -> None:
    server.use(0, 1)
    with httpx.stream("GET", f"{server.url}/v1/experts/stream?interval=0.1", timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = events(response)
        name, whole = next(stream)
        assert (name, whole["model"]) == ("snapshot", "fake")
        assert whole["layers"] == [{"layer": layer, "num_experts": NUM_EXPERTS} for layer in range(NUM_LAYERS)]
        top = 2 if "device" in whole["tiers"] else 1
        assert whole["residency"] == [[0, top, 0, 0, 0, 0, 0, 0], [0] * 8]
        assert whole["tokens"] == [[0, 1, 0, 0, 0, 0, 0, 0], [0] * 8]
        assert whole["pinned"] == []
        assert whole["prompt_tokens"] == whole["num_requests_running"] == whole["kv_cache_usage"] == 0
        name, quiet = next(stream)
        assert name == "update"
        assert (quiet["residency"], quiet["tokens"], quiet["pinned"]) == ([], [], None)
        assert set(quiet) == set(whole) - {"model", "layers"}
        server.use(1, 7)
        until(stream, lambda data: [1, 7, 1] in data["tokens"])
        server.changed("pin", [1, 7])
        until(stream, lambda data: data["pinned"] == [[1, 7]])
        server.changed("evict", [0, 1])
        until(stream, lambda data: [0, 1, 0] in data["residency"])
    server.live.wait_until_left()


@pytest.mark.slow
def test_listeners_share_samples(server: ExpertServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten listeners that ask at the same time share one sample."""
    looks = []
    experts = server.live.uvicorn.config.app.state.service.model.experts
    take = experts.sample
    monkeypatch.setattr(experts, "sample", lambda: looks.append(1) or take())
    monkeypatch.setattr("server.api.core.service.expert_sampler.LEAST_INTERVAL_SECONDS", 3600)
    for _ in range(10):
        with httpx.stream("GET", f"{server.url}/v1/experts/stream?interval=60", timeout=30) as response:
            assert next(events(response))[0] == "snapshot"
    assert len(looks) == 1
    server.live.wait_until_left()


def test_listeners_are_bounded_and_one_that_leaves_frees_a_place(
    server: ExpertServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.admin.experts_stream.MAX_LISTENERS", 1)
    url = f"{server.url}/v1/experts/stream?interval=60"
    with httpx.stream("GET", url, timeout=30) as response:
        stream = events(response)  # which closes the response when it is forgotten
        assert next(stream)[0] == "snapshot"
        refused = httpx.get(url)
        assert refused.status_code == 429
        assert "close one of them first" in refused.json()["error"]["message"]
    server.live.wait_until_left()
    with httpx.stream("GET", url, timeout=30) as response:
        assert next(events(response))[0] == "snapshot"


def test_draining_ends_the_stream(server: ExpertServer) -> None:
    with httpx.stream("GET", f"{server.url}/v1/experts/stream?interval=60", timeout=30) as response:
        stream = events(response)
        assert next(stream)[0] == "snapshot"
        server.live.uvicorn.config.app.state.service.is_draining = True
        assert list(stream) == []


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["0.05", "61", "nan", "inf", "x", "-1"])
def test_an_interval_out_of_bounds_is_refused(interval: str, server: ExpertServer) -> None:
    answer = server.get(f"/stream?interval={interval}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "interval"
