"""The model ``auto`` over a socket: the real engine with a fake model, adapters in real files, every dialect."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import httpx
import pytest

from server.api.core.access.access_policies import AccessPolicies
from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.access.rate_limiter import RateLimiter, RateLimits
from server.engine.interface import (
    AccessPolicy,
    AdapterExamples,
    GenerationRequest,
    RequestWeights,
    TokenStream,
    UnknownAdapterError,
)
from tests.adapters import write_adapter
from tests.server.engine.fakes import FakeModel
from tests.server.live.requests import post
from tests.server.live.test_adapters import AdapterServer, server

__all__ = ["server"]

LAW, CODE = "the party of the first part", "0123456789"
CHAT = [{"role": "user", "content": LAW}]
COMPLETION = {"model": "auto", "prompt": LAW, "max_tokens": 2}
DIALECTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": LAW, "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 2}),
    ("/v1/responses", {"input": LAW, "max_output_tokens": 2}),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 2}),
    ("/api/chat", {"messages": CHAT, "options": {"num_predict": 2}}),
    ("/api/generate", {"prompt": LAW, "options": {"num_predict": 2}}),
    ("/api/generate", {"prompt": LAW, "raw": True, "options": {"num_predict": 2}}),
]


@pytest.fixture
def routed(server: AdapterServer) -> AdapterServer:
    """A server with two adapters that take part in routing, and one that does not."""
    server.load("plain").raise_for_status()
    server.load("law", examples=[LAW]).raise_for_status()
    server.load("code", examples=[CODE]).raise_for_status()
    return server


class HeldEngine:
    """Lets the engine begin no step until ``go`` is set."""

    def __init__(self, server: AdapterServer) -> None:
        self.has_begun, self.go = threading.Event(), threading.Event()
        self._model = cast("FakeModel", vars(server.live.engine)["_runner"])
        self._model.before_step = self._wait

    def _wait(self) -> None:
        self.has_begun.set()
        assert self.go.wait(30)


@pytest.fixture
def held(routed: AdapterServer) -> Iterator[HeldEngine]:
    """An engine that is held once the examples of all adapters are known."""
    routed.post("/v1/completions", **COMPLETION).raise_for_status()
    engine = HeldEngine(routed)
    yield engine
    engine.go.set()


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the objects of a stream of any dialect."""
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def routings_in(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the events of a stream say about routing, wherever the dialect has its reply."""
    replies = [each for event in events for each in (event, event.get("response"), event.get("message"))]
    found = [reply["greenroom"] for reply in replies if isinstance(reply, dict) and "greenroom" in reply]
    return [each["routing"] for each in found if "routing" in each]


def wait_until_ready(server: AdapterServer) -> None:
    """Wait until the examples of the first adapter are embedded."""
    for _ in range(3000):
        if server.get("/v1/adapters")["data"][0]["routing"]["state"] == "ready":
            return
        threading.Event().wait(0.01)
    raise AssertionError("the examples were not embedded")


def error_of(answer: httpx.Response) -> tuple[int, str | None, str]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), DIALECTS)
def test_every_dialect_tells_which_adapter_was_chosen_and_why(
    routed: AdapterServer, path: str, body: dict[str, Any]
) -> None:
    answer = routed.post(path, model="auto", stream=False, **body)
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    routing = reply["greenroom"]["routing"]
    assert routed.last_used() == {"law": 1.0}
    assert (reply["model"], routing["model"], routing["method"]) == ("law", "law", "embedding")
    assert routing["scores"].keys() == {"law", "code", "fake"}
    assert sum(routing["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert routing["reason"].startswith("The prompt is most like them: the cosine with the examples of 'law' is 1.000")
    assert routing["prompt_tokens"] == len(LAW)
    assert answer.headers["x-greenroom-routing"].startswith("law; score=")


@pytest.mark.slow
def test_examples_and_prompts_that_the_router_embeds_are_no_requests(routed: AdapterServer) -> None:
    routed.post("/v1/completions", **COMPLETION, ignore_eos=True).raise_for_status()
    assert routed.live.engine.statistics.finished == {"length": 1}


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), DIALECTS)
def test_streams_of_every_dialect_tell_it_too(routed: AdapterServer, path: str, body: dict[str, Any]) -> None:
    answer = routed.post(path, model="auto", stream=True, **body)
    events = events_of(answer)
    assert {routing["model"] for routing in routings_in(events)} == {"law"}
    assert {event["model"] for event in events if "model" in event} <= {"law"}
    assert answer.headers["x-greenroom-routing"].startswith("law; score=")


def test_a_stream_of_completions_tells_it_in_the_first_chunk_once(routed: AdapterServer) -> None:
    events = events_of(routed.post("/v1/completions", stream=True, n=2, **COMPLETION))
    assert ["greenroom" in event for event in events] == [True] + [False] * (len(events) - 1)


def test_a_prompt_like_no_examples_runs_on_the_base_model(routed: AdapterServer) -> None:
    answer = routed.post("/v1/completions", **COMPLETION | {"prompt": "\x01\x7f" * 60}).json()
    assert answer["model"] == "fake"
    assert answer["greenroom"]["routing"]["reason"].startswith("No adapter is near enough: the cosine with the")
    assert routed.used[-1] is None


def test_a_threshold_of_the_request_replaces_the_servers_own(routed: AdapterServer) -> None:
    answer = routed.post("/v1/completions", **COMPLETION | {"routing": {"threshold": 1.0}, "prompt": LAW + "!"})
    assert answer.json()["model"] == "law"
    stranger = COMPLETION | {"prompt": "\x01\x7f" * 60}
    strict = routed.post("/v1/completions", **stranger | {"routing": {"threshold": 1.0}}).json()["model"]
    loose = routed.post("/v1/completions", **stranger | {"routing": {"threshold": -1000.0}})
    assert strict == "fake"
    assert error_of(loose)[:2] == (400, "routing.threshold")


def test_only_the_texts_of_the_user_are_compared_in_a_chat(routed: AdapterServer) -> None:
    messages = [{"role": "system", "content": CODE * 9}, *CHAT]
    answer = routed.post("/v1/chat/completions", model="auto", messages=messages, max_tokens=1).json()
    assert (answer["model"], answer["greenroom"]["routing"]["prompt_tokens"]) == ("law", len(LAW))


def chat_of(*turns: str) -> list[dict[str, str]]:
    """Return a chat whose turns were answered, but for the last one."""
    answer = {"role": "assistant", "content": "-"}
    return [message for turn in turns for message in ({"role": "user", "content": turn}, answer)][:-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("turns", "chosen"),
    [
        ((LAW, CODE), "code"),
        ((CODE, LAW), "law"),
        ((CODE, CODE, CODE, LAW), "law"),
        ((LAW, "go on"), "law"),  # a short turn asks for more of the topic
        ((CODE, "0"), "code"),
        ((LAW, "  "), "law"),
    ],
    ids=str,
)
def test_the_last_turn_that_tells_enough_decides_in_a_chat(
    routed: AdapterServer, turns: tuple[str, ...], chosen: str
) -> None:
    answer = routed.post("/v1/chat/completions", model="auto", messages=chat_of(*turns), max_tokens=2).json()
    assert answer["model"] == chosen


def test_four_turns_of_a_long_chat_are_compared(routed: AdapterServer) -> None:
    answer = routed.post("/v1/chat/completions", model="auto", messages=chat_of(*"abcde"), max_tokens=2).json()
    assert answer["greenroom"]["routing"]["prompt_tokens"] == 4


def test_a_chat_without_text_of_the_user_runs_on_the_base_model(routed: AdapterServer) -> None:
    messages = [{"role": "system", "content": LAW}]
    answer = routed.post("/v1/chat/completions", model="auto", messages=messages, max_tokens=1).json()
    assert answer["model"] == "fake"
    assert "no text to compare" in answer["greenroom"]["routing"]["reason"]


def test_several_prompts_of_one_request_run_with_one_adapter(routed: AdapterServer) -> None:
    answer = routed.post("/v1/completions", model="auto", prompt=[LAW, LAW], max_tokens=1).json()
    assert (answer["model"], len(answer["choices"])) == ("law", 2)


def test_adapters_of_the_request_are_added_to_the_chosen_one(routed: AdapterServer) -> None:
    routed.post("/v1/completions", adapters=[{"name": "plain", "weight": 0.5}], **COMPLETION).raise_for_status()
    assert routed.last_used() == {"law": 1.0, "plain": 0.5}
    routed.post("/v1/completions", adapters=[{"name": "law", "weight": 0.5}], **COMPLETION).raise_for_status()
    assert routed.last_used()["law"] == 0.5


def test_auto_is_listed_while_an_adapter_takes_part(server: AdapterServer) -> None:
    server.load("plain")
    assert [model["id"] for model in server.get("/v1/models")["data"]] == ["fake", "plain"]
    server.load("law", examples=[LAW])
    listed = server.get("/v1/models")["data"]
    assert [model["id"] for model in listed] == ["fake", "plain", "law", "auto"]
    assert (listed[-1]["root"], listed[-1]["parent"]) == ("fake", "fake")
    assert server.get("/v1/models/auto") == listed[-1]
    assert "auto:latest" in [model["name"] for model in server.get("/api/tags")["models"]]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), DIALECTS)
def test_auto_without_an_adapter_to_choose_is_refused(server: AdapterServer, path: str, body: dict[str, Any]) -> None:
    server.load("plain")
    answer = server.post(path, model="auto", **body)
    assert answer.status_code == 400
    assert "no adapter can be chosen: load one with 'examples' or a 'description'" in answer.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "hi"}),
        ("/api/embed", {"input": "hi"}),
        ("/score", {"text_1": "hi", "text_2": "ho"}),
    ],
)
def test_auto_gives_no_embeddings(routed: AdapterServer, path: str, body: dict[str, Any]) -> None:
    answer = routed.post(path, model="auto", **body)
    assert answer.status_code == 400
    assert "not for embeddings: name a model" in answer.text


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/tokenize"])
def test_tokens_of_auto_are_those_of_the_base_model(routed: AdapterServer, path: str) -> None:
    assert routed.post(path, model="auto", messages=CHAT).json() == routed.post(path, messages=CHAT).json()


def test_arrow_chooses_from_all_adapters_but_those_with_a_fixed_weight(server: AdapterServer) -> None:
    """No adapter has examples, which it does not need."""
    for name in ("plain", "law"):
        server.load(name).raise_for_status()
    changes = {"routing": {"method": "arrow", "top_k": 1, "temperature": 0.5}, "adapters": [{"name": "law"}]}
    answer = server.post("/v1/completions", **COMPLETION | changes)
    reply, weights = answer.json(), server.used[-1]
    assert answer.status_code == 200, answer.text
    assert weights is not None
    assert weights.chooser is not None
    assert ([each.name for each in weights.chooser.adapters], server.last_used()) == (["plain"], {"law": 1.0})
    assert (weights.chooser.top_k, weights.chooser.temperature) == (1, 0.5)
    routing = reply["greenroom"]["routing"]
    assert (reply["model"], routing["method"], routing["adapters"]) == ("auto", "arrow", ["plain"])
    assert (routing["top_k"], routing["temperature"]) == (1, 0.5)
    assert answer.headers["x-greenroom-routing"] == "auto; method=arrow"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"routing": {"method": "arrow", "threshold": 0.5}}, "routing", "the method 'arrow' does not take"),
        ({"routing": {"method": "arrow", "top_k": 0}}, "routing.top_k", "greater than or equal to 1"),
        ({"routing": {"method": "arrow", "adapters": ["none"]}}, "routing.adapters", "there is no adapter 'none'"),
        ({"routing": {"method": "arrow", "adapters": ["law", "law"]}}, "routing.adapters", "chosen twice"),
        ({"routing": {"method": "arrow"}}, "adapters", "take 3 pages of memory together"),
        ({"routing": {"top_k": 2}}, "routing", "the method 'embedding' does not take"),
        ({"routing": {"method": "dice"}}, "routing.method", "'routing.method': input should be 'embedding' or 'arrow'"),
        ({"routing": {"method": "embedding", "top": 1}}, "routing.top", "'routing.top'"),
        ({"routing": {"threshold": "near"}}, "routing.threshold", "'routing.threshold'"),
        ({"routing": {}, "model": "law"}, "routing", "'routing' is for the model 'auto' only"),
        ({"adapters": [{"name": "none"}]}, "adapters", "there is no adapter 'none'"),
        ({"prompt": [999999]}, "prompt", "token id 999999"),
    ],
)
def test_a_wrong_request_is_refused(routed: AdapterServer, changes: dict[str, Any], param: str, message: str) -> None:
    status, found, text = error_of(routed.post("/v1/completions", **COMPLETION | changes))
    assert (status, found) == (400, param)
    assert message in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"examples": [" "]}, "examples[0]", "must not be empty"),
        ({"examples": ["x" * 4097]}, "examples[0]", "at most 4096 characters"),
        ({"examples": ["x"] * 65}, "examples", "at most 64 prompts"),
        ({"examples": "x"}, "examples", "'examples'"),
        ({"description": ""}, "description", "must not be empty"),
        ({"description": 1}, "description", "'description'"),
    ],
)
def test_wrong_examples_are_refused_and_nothing_is_loaded(
    server: AdapterServer, fields: dict[str, Any], param: str, message: str
) -> None:
    status, found, text = error_of(server.load("law", **fields))
    assert (status, found) == (400, param)
    assert message in text
    assert server.registry.names() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object"),
        ('{"example": []}', "unknown field 'example'"),
        ('{"examples": [1]}', "must be a list of strings"),
        ('{"description": []}', "must be a string"),
        ('{"examples": [""]}', "'examples[0]' must not be empty"),
        ('{"description": "' + "x" * (2 << 20) + '"}', "more than 2 MiB"),
    ],
)
def test_a_wrong_file_is_refused_by_name(server: AdapterServer, content: str, message: str) -> None:
    folder = write_adapter(server.folder / "law")
    (folder / "routing.json").write_text(content)
    status, found, text = error_of(server.post("/v1/load_lora_adapter", lora_name="law", lora_path="law"))
    assert (status, found) == (400, "lora_path")
    assert "routing.json" in text
    assert message in text


def test_a_file_that_is_a_link_out_of_the_folder_is_refused(server: AdapterServer) -> None:
    outside = server.folder.parent / "outside.json"
    outside.write_text('{"examples": ["x"]}')
    (write_adapter(server.folder / "law") / "routing.json").symlink_to(outside)
    status, _, text = error_of(server.post("/v1/load_lora_adapter", lora_name="law", lora_path="law"))
    assert (status, "is a link out of" in text) == (400, True)


def test_examples_come_from_the_folder_unless_the_body_has_some(server: AdapterServer) -> None:
    write_adapter(server.folder / "law")
    (server.folder / "law" / "routing.json").write_text(json.dumps({"description": "contracts", "examples": [LAW]}))
    server.load("law").raise_for_status()
    assert server.post("/v1/completions", **COMPLETION).json()["model"] == "law"
    server.load("law", load_inplace=True, examples=[]).raise_for_status()
    assert server.get("/v1/adapters")["data"][0]["routing"] is None
    assert server.post("/v1/completions", **COMPLETION).status_code == 400


def test_the_list_of_adapters_says_which_take_part(routed: AdapterServer) -> None:
    routed.load("both", description="numbers", examples=[CODE, CODE]).raise_for_status()
    routed.post("/v1/completions", **COMPLETION).raise_for_status()
    listed = {each["name"]: each["routing"] for each in routed.get("/v1/adapters")["data"]}
    assert listed["plain"] is None
    assert listed["law"] == {"description": None, "examples": 1, "state": "ready"}
    assert listed["both"] == {"description": "numbers", "examples": 2, "state": "ready"}


def test_examples_are_embedded_when_an_adapter_is_loaded(server: AdapterServer) -> None:
    server.load("law", examples=[LAW]).raise_for_status()
    wait_until_ready(server)


def test_loading_does_not_wait_for_a_busy_engine(routed: AdapterServer, held: HeldEngine) -> None:
    assert routed.load("more", examples=["more of it"]).status_code == 200
    assert routed.get("/v1/adapters")["data"][-1]["routing"]["state"] == "computing"


def test_more_examples_than_the_queue_holds_are_embedded_one_by_one(
    server: AdapterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vars(server.live.engine)["_submissions"], "_max_queued", 1)
    server.load("law", examples=[LAW] * 20).raise_for_status()
    wait_until_ready(server)
    assert server.post("/v1/completions", **COMPLETION).json()["model"] == "law"


def test_a_replaced_adapter_is_compared_by_its_new_examples(routed: AdapterServer) -> None:
    routed.load("law", examples=[CODE], load_inplace=True).raise_for_status()
    routed.load("code", examples=[LAW], load_inplace=True).raise_for_status()
    assert routed.post("/v1/completions", **COMPLETION).json()["model"] == "code"


def test_an_adapter_that_is_unloaded_while_the_prompt_is_embedded_is_not_chosen(
    routed: AdapterServer, held: HeldEngine
) -> None:
    routed.load("second", examples=[LAW + "."]).raise_for_status()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(routed.post("/v1/completions", **COMPLETION)))
    asking.start()
    assert held.has_begun.wait(30)
    routed.post("/v1/unload_lora_adapter", lora_name="law").raise_for_status()
    held.go.set()
    asking.join()
    assert answers[0].json()["model"] == "second"


@pytest.mark.slow
def test_an_adapter_that_is_unloaded_after_the_choice_leads_to_the_next_best(
    routed: AdapterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed.load("second", examples=[LAW + "."]).raise_for_status()
    directory = routed.live.model.directory
    assert directory is not None
    resolve = directory.resolve

    def unloaded(name: str | None, *others: Any) -> RequestWeights | None:
        if name == "law":
            raise UnknownAdapterError("there is no adapter 'law'", "model")
        return resolve(name, *others)

    monkeypatch.setattr(directory, "resolve", unloaded)
    answer = routed.post("/v1/completions", **COMPLETION).json()
    assert answer["model"] == "second"
    assert "law" not in answer["greenroom"]["routing"]["scores"]


def test_a_client_that_leaves_while_its_prompt_is_embedded_leaves_nothing_behind(
    routed: AdapterServer, held: HeldEngine
) -> None:
    num_before = routed.live.engine.num_submitted
    with routed.live.connect() as connection:
        connection.sendall(post("/v1/completions", **COMPLETION))
        assert held.has_begun.wait(30)
    routed.live.wait_until_left()
    held.go.set()
    routed.live.wait_until_idle()
    assert routed.live.engine.num_submitted == num_before + 1  # the embedding, and no text
    assert routed.registry.num_routed()["law"] == 1  # that of the fixture


def test_examples_do_not_count_as_requests_of_the_caller_that_waits_for_them(server: AdapterServer) -> None:
    """The caller leaves while they are embedded, so nothing would end their count."""
    server.service.rate_limiter = RateLimiter(RateLimits(max_running=3))
    write_adapter(server.folder / "law")
    server.registry.load("law", "law", examples=AdapterExamples(examples=(LAW,) * 8))
    server.post("/v1/completions", model="fake", prompt=LAW, max_tokens=1).raise_for_status()
    model = cast("FakeModel", vars(server.live.engine)["_runner"])
    num_steps, go, has_begun = len(model.steps), threading.Event(), threading.Event()

    def hold_the_examples() -> None:
        if len(model.steps) > num_steps:  # the first step was that of the prompt
            has_begun.set()
            assert go.wait(30)

    model.before_step = hold_the_examples
    with server.live.connect() as connection:
        connection.sendall(post("/v1/completions", **COMPLETION))
        assert has_begun.wait(30)
    server.live.wait_until_left()
    go.set()
    server.post("/v1/completions", **COMPLETION).raise_for_status()
    server.live.wait_until_idle()
    callers = vars(server.service.rate_limiter)["_callers"].values()
    assert [caller.num_running for caller in callers] == [0]


def test_the_time_limit_covers_the_embedding(routed: AdapterServer, held: HeldEngine) -> None:
    answer = routed.post("/v1/completions", timeout=0.05, **COMPLETION)
    assert answer.status_code == 504
    assert "not done within 0.05 seconds" in answer.text


def test_what_the_embedding_took_is_not_left_for_the_text(
    routed: AdapterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, requests = routed.live.engine, list[GenerationRequest]()
    submit = engine.submit

    def noted(request: GenerationRequest) -> TokenStream:
        requests.append(request)
        return submit(request)

    monkeypatch.setattr(engine, "submit", noted)
    routed.post("/v1/completions", timeout=60, **COMPLETION).raise_for_status()
    assert (requests[-1].deadline_seconds, requests[-1].pooling) == (60, None)
    assert requests[-1].spent_seconds > 0


def test_a_draining_server_refuses_auto(routed: AdapterServer) -> None:
    routed.service.is_draining = True
    assert routed.post("/v1/completions", **COMPLETION).status_code == 503


def test_auto_needs_the_key_of_a_user(routed: AdapterServer) -> None:
    routed.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    assert routed.post("/v1/completions", **COMPLETION).status_code == 401


def test_the_access_log_has_the_choice(routed: AdapterServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    routed.post("/v1/completions", **COMPLETION).raise_for_status()
    routed.live.wait_until_left()
    logged = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "request"]
    [fields] = [fields for fields in logged if fields.get("model")]  # the adapters were loaded by requests, too
    assert (fields["model"], fields["routing_method"]) == ("law", "embedding")
    assert 0 < fields["routing_score"] <= 1
    assert 0 <= fields["routing_seconds"] <= fields["seconds"]


def test_choices_are_counted_by_adapter_until_it_is_unloaded(routed: AdapterServer) -> None:
    assert routed.registry.num_routed() == {None: 0, "law": 0, "code": 0}
    for prompt in (LAW, LAW, "\x01\x7f" * 60):
        routed.post("/v1/completions", **COMPLETION | {"prompt": prompt}).raise_for_status()
    assert routed.registry.num_routed() == {None: 1, "law": 2, "code": 0}
    routed.post("/v1/unload_lora_adapter", lora_name="law").raise_for_status()
    assert routed.registry.num_routed() == {None: 1, "code": 0}


def put_default(server: AdapterServer, **rules: Any) -> None:
    """Put a policy for requests without a key in force."""
    server.service.policies = AccessPolicies({"default": AccessPolicy("default", **rules)})


def test_only_what_the_policy_allows_is_chosen(routed: AdapterServer) -> None:
    put_default(routed, models=("fake", "code"))
    answer = routed.post("/v1/completions", **COMPLETION).json()
    assert answer["model"] in {"fake", "code"}
    assert answer["greenroom"]["routing"]["scores"].keys() == {"code", "fake"}


@pytest.mark.slow
def test_a_required_adapter_is_added_to_the_chosen_one(routed: AdapterServer) -> None:
    put_default(routed, adapters=(("plain", 0.5),))
    assert routed.post("/v1/completions", **COMPLETION).json()["model"] == "law"
    assert routed.last_used() == {"law": 1.0, "plain": 0.5}
    stranger = COMPLETION | {"prompt": "\x01\x7f" * 60}
    assert routed.post("/v1/completions", **stranger).json()["model"] == "fake"
    assert routed.last_used() == {"plain": 0.5}


def test_a_base_model_that_the_policy_does_not_allow_is_no_way_out(routed: AdapterServer) -> None:
    put_default(routed, models=("law",))
    stranger = COMPLETION | {"prompt": "\x01\x7f" * 60}
    status, param, message = error_of(routed.post("/v1/completions", **stranger))
    assert (status, param) == (400, "model")
    assert "no adapter that this key may use is close to the prompt" in message
    assert routed.post("/v1/completions", **COMPLETION).json()["model"] == "law"


@pytest.mark.slow
def test_the_list_of_requests_tells_the_model_its_adapters_and_why_it_was_chosen(
    routed: AdapterServer, held: HeldEngine
) -> None:
    body = {"model": "law", "prompt": "hi", "max_tokens": 2, "adapters": [{"name": "code", "weight": 0.5}]}
    clients = [threading.Thread(target=routed.post, args=("/v1/completions",), kwargs=body)]
    clients[0].start()
    assert held.has_begun.wait(30)
    (named,) = routed.get("/v1/requests")["data"]
    assert (named["model"], named["adapters"]) == ("law", {"law": 1.0, "code": 0.5})
    assert "routing" not in named["greenroom"]
    held.go.set()
    clients[0].join()


def test_the_list_of_requests_tells_what_a_router_chose(routed: AdapterServer) -> None:
    seen: list[dict[str, Any]] = []
    model = cast("FakeModel", vars(routed.live.engine)["_runner"])
    generated = model.next_token

    def look(place: Any) -> Any:
        seen.extend(routed.get("/v1/requests")["data"])
        return generated(place)

    model.next_token = look
    reply = routed.post("/v1/completions", **COMPLETION).json()
    chosen = seen[-1]
    assert (chosen["model"], chosen["adapters"]) == ("law", {"law": 1.0})
    assert chosen["greenroom"]["routing"] == reply["greenroom"]["routing"]
