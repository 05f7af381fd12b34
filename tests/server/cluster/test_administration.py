"""Changes of all replicas' weights, or of none, and views of all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.administration.expert_snapshot import ExpertSample
from server.cluster.administration import Administration, RemoteAdapters, RemoteExperts
from server.cluster.kept_counts import Counts, KeptCounts, MetricsPage
from server.cluster.wire import Outcome
from server.engine.interface import ChangedExperts, EngineUnavailableError, RequestRefusedError

TOKENS = "# TYPE greenroom_prompt_tokens_total counter\ngreenroom_prompt_tokens_total {}\n"


class Replicas:
    """Replicas that answer a method with what a test wants."""

    def __init__(self, **answers: list[Outcome]):
        self._answers = answers
        self.calls: list[tuple[Any, ...]] = []
        self.keeper: KeptCounts | None = KeptCounts()

    def count(self, **pages: tuple[int, int]) -> None:
        """Let these replicas answer, and no others, with pages of these numbers and counts of tokens."""
        self._answers["render_metrics"] = [
            Outcome(name, MetricsPage(number, TOKENS.format(count).encode())) for name, (number, count) in pages.items()
        ]

    def call_all(self, method: str, *arguments: Any) -> list[Outcome]:
        self.calls.append((method, *arguments))
        return self._answers.get(method, [])

    def exchange_counts(self, counts: Counts) -> Counts:
        if self.keeper is None:
            raise EngineUnavailableError("the keeper is gone")
        return self.keeper.exchange(counts)


def administration(replicas: Replicas) -> Administration:
    return Administration(replicas, lambda: None)


def test_an_adapter_that_one_replica_can_not_load_is_unloaded_by_the_others() -> None:
    failed = RequestRefusedError("no room", "lora_path")
    replicas = Replicas(change_weights=[Outcome("a", False), Outcome("b", error=failed)])
    with pytest.raises(RequestRefusedError, match="no room"):
        RemoteAdapters(administration(replicas)).load("pies", "recipes")
    (changed, change), undone = replicas.calls
    assert changed == "change_weights"
    assert undone == ("undo_change", change.id)


def test_nothing_is_undone_where_no_replica_has_changed() -> None:
    replicas = Replicas(change_weights=[Outcome("a", error=RequestRefusedError("no such folder", "lora_path"))])
    with pytest.raises(RequestRefusedError):
        RemoteAdapters(administration(replicas)).load("pies", "recipes")
    assert [call[0] for call in replicas.calls] == ["change_weights"]


def test_a_view_leaves_out_replicas_that_do_not_answer() -> None:
    gone = Outcome("", error=EngineUnavailableError("gone"))
    replicas = Replicas(call=[Outcome("a", {"stall_seconds": 2.0}), gone])
    assert RemoteExperts(administration(replicas), "model").overview() == {"stall_seconds": 2.0, "replicas": 1}


def test_no_answer_at_all_is_an_error() -> None:
    with pytest.raises(EngineUnavailableError, match="no replica answers"):
        RemoteExperts(administration(Replicas()), "model").overview()


def test_experts_that_one_replica_could_not_evict_are_told() -> None:
    changes = [ChangedExperts(2, {}), ChangedExperts(1, {"leased": [(0, 3)]})]
    replicas = Replicas(call=[Outcome(str(number), change) for number, change in enumerate(changes)])
    changed = RemoteExperts(administration(replicas), "model").change("evict", [(0, 2), (0, 3)])
    assert changed == ChangedExperts(2, {"leased": [(0, 3)]})


def test_pins_fail_if_a_replica_refuses_them() -> None:
    refused = Outcome("b", error=RequestRefusedError("too few slots", "experts"))
    replicas = Replicas(call=[Outcome("a", ChangedExperts(1)), refused])
    with pytest.raises(RequestRefusedError, match="too few slots"):
        RemoteExperts(administration(replicas), "model").change("pin", [(0, 2)])


def sample(*tokens: int) -> ExpertSample:
    counts = np.array([tokens])
    return ExpertSample({0: len(tokens)}, np.zeros_like(counts, np.uint8), counts, frozenset(), (), {})


def test_an_expert_is_dead_that_no_replica_has_used() -> None:
    replicas = Replicas(call=[Outcome("a", sample(4000, 0, 0, 4000)), Outcome("b", sample(0, 4000, 0, 4000))])
    (balance,) = RemoteExperts(administration(replicas), "model").sample().balance
    assert (balance.dead, balance.max_over_mean) == ((2,), 2.0)


def test_the_balance_begins_anew_when_a_replica_is_gone() -> None:
    samples = [sample(4000, 4000), sample(8000, 8000)]
    replicas = Replicas(call=[Outcome(str(number), each) for number, each in enumerate(samples)])
    experts = RemoteExperts(administration(replicas), "model")
    experts.sample()
    replicas._answers = {"call": [Outcome("0", sample(9000, 0))]}
    (balance,) = experts.sample().balance
    assert balance.dead == (1,)


def tokens(ingress: Administration) -> int:
    lines = ingress.metrics().decode().splitlines()
    (line,) = [line for line in lines if line.startswith("greenroom_prompt_tokens_total")]
    return int(line.split()[-1])


def test_no_count_falls_when_a_replica_is_gone_and_another_has_come() -> None:
    replicas = Replicas()
    ingress = administration(replicas)
    replicas.count(a=(1, 549), b=(1, 51))
    assert tokens(ingress) == 600
    replicas.count(b=(2, 51))
    assert tokens(ingress) == 600
    replicas.count(b=(3, 52), c=(1, 4))
    assert tokens(ingress) == 605


def test_a_new_ingress_tells_what_replicas_that_it_never_saw_have_counted() -> None:
    replicas = Replicas()
    replicas.count(a=(1, 549), b=(1, 51))
    tokens(administration(replicas))
    replicas.count(b=(2, 51))
    assert tokens(administration(replicas)) == 600


def test_counts_stay_though_what_keeps_them_is_gone_and_has_begun_anew() -> None:
    replicas = Replicas()
    ingress = administration(replicas)
    replicas.count(a=(1, 549), b=(1, 51))
    tokens(ingress)
    replicas.count(b=(2, 51))
    for keeper in (None, KeptCounts()):
        replicas.keeper = keeper
        assert tokens(ingress) == 600
    assert tokens(administration(replicas)) == 600
