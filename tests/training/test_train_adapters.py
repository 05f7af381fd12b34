"""Adapters and a variant of a tiny model, each trained for two steps."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from server.model.checkpoint.locate import BUNDLED
from server.model.lora.gate_files import is_gate
from server.model.lora.pages import page_layout
from server.model.lora.peft_files import read_adapter
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk_loader import load_trunk
from tests.server.model.variants import base_of, read, read_tensors
from training import train_adapters
from training.adapters_readme import change, render
from training.auto_chats import ADAPTERS, CHATS
from training.corpus import Domain
from training.errors import CorpusError
from training.expert_training import LayerExperts, VariantShape, choose_experts, load_variant, train_variant
from training.lora_training import LoraShape, load_adapted, train_adapter
from training.measure import measure
from training.routing_examples import write_routing
from training.tuning import Tuning, learning_rate_scale, prepare_text, tune

TUNING = Tuning(steps=2, length=16, rows=2, eval_every=1, validation_tokens=64)
INSTALLED = BUNDLED.parent


@pytest.fixture
def law(domains: Any) -> Any:
    return next(domain for domain in domains if domain.name == "law")


def test_validation_text_and_training_text_share_no_document() -> None:
    documents = [np.full(20, number, np.uint16) for number in range(1, 31)]
    text = prepare_text(Domain("law", documents, [], [], 0), TUNING)
    assert (len(text.validation), len(text.train)) == (4, 32)
    assert not set(text.train.flat) & set(text.validation.flat)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    assert [learning_rate_scale(done, step) for done, step in ((0.0, 0), (0.5, 50), (1.0, 100))] == [0.2, 0.5, 0.0]


class Overshooting:
    """A ``Trainable`` that makes the model worse with each step."""

    def __init__(self, model: Any):
        self.model = model
        self.parameters = [model.lm_head.weight]

    def collect_gradients(self) -> None:
        """Turn the gradient around."""
        self.parameters[0].grad.neg_()

    def publish(self) -> None:
        """Do nothing: the model has the parameter itself."""


def test_training_ends_when_the_loss_has_stopped_falling_and_keeps_the_best_weights(base: Path, law: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = model.lm_head.weight.detach().clone()
    tuned = tune(
        model, Overshooting(model), prepare_text(law, TUNING), 0.1, tuning=replace(TUNING, steps=50, patience=3)
    )
    assert (tuned.steps, tuned.best_step) == (3, 0)
    assert torch.equal(model.lm_head.weight, before)


def test_training_ends_at_its_time(base: Path, law: Any, tmp_path: Path) -> None:
    tuning = replace(TUNING, steps=1000, minutes=1e-9)
    tuned = train_adapter(
        base, prepare_text(law, tuning), LoraShape(), tuning=tuning, out=tmp_path / "law", dtype=torch.float32
    )
    assert tuned.steps == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_seed_trains_as_well_and_the_server_can_read_the_adapter(
    base: Path, law: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    first, second = (
        train_adapter(base, prepare_text(law, TUNING), LoraShape(), tuning=TUNING, out=tmp_path / name, dtype=dtype)
        for name in "ab"
    )
    assert (first.steps, first.tokens) == (2, 64)
    assert first.curve == pytest.approx(second.curve, rel=1e-4)  # sums are rounded in another order
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    targets = lora_targets(load_trunk(base, torch.float32))
    files = read_adapter(tmp_path / "a", targets, page_layout(targets).slot_bytes)
    assert (files.ranks, files.match.num_applied) == ([2, 8], len(tensors))


def test_an_adapter_lowers_the_loss_of_its_domain(base: Path, law: Any, tmp_path: Path) -> None:
    tuning = replace(TUNING, steps=20, eval_every=10)
    tuned = train_adapter(
        base, prepare_text(law, tuning), LoraShape(), tuning=tuning, out=tmp_path / "law", dtype=torch.float32
    )
    before, after = tuned.perplexities
    assert after < before
    own = measure(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), law, 16).perplexity
    assert measure(load_adapted(base, tmp_path / "law"), law, 16).perplexity < own


def test_the_experts_with_most_choices_are_chosen_until_they_have_the_share(base: Path, law: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = prepare_text(law, TUNING).train
    (one,) = choose_experts(model, rows, VariantShape(share=0.01, layers=1)).values()
    every = choose_experts(model, rows, VariantShape(share=1.0, layers=2))
    assert len(one.experts) == 1
    assert every == {layer: LayerExperts([0, 1, 2, 3], 1.0) for layer in (0, 1)}


def test_a_variant_holds_its_changed_experts_alone_and_the_server_can_read_it(
    base: Path, law: Any, tmp_path: Path
) -> None:
    shape, out = VariantShape(share=0.3, layers=1), tmp_path / "law"
    _, chosen = train_variant(base, prepare_text(law, TUNING), shape, tuning=TUNING, out=out, dtype=torch.float32)
    files = read(out, base_of(base, load_trunk(base, torch.float32)))
    assert sorted(files.recipes) == [(1, expert) for expert in chosen[1].experts]
    own, changed = read_tensors(base), read_tensors(out)
    assert all(not torch.equal(own[name], tensor) for name, tensor in changed.items())
    loaded = load_variant(base, out).state_dict()["model.layers.1.mlp.experts.down_proj"]
    for expert in chosen[1].experts:
        assert torch.equal(loaded[expert].bfloat16(), changed[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"])


def test_examples_for_routing_come_from_training_documents(law: Any, tokenizer: Any, tmp_path: Path) -> None:
    write_routing(tmp_path, law, tokenizer)
    values = json.loads((tmp_path / "routing.json").read_text())
    training = [tokenizer.decode(document.tolist()) for document in law.train]
    assert len(values["examples"]) == 16
    assert all(any(example in text for text in training) for example in values["examples"])


def test_questions_that_a_document_answers_are_examples_too(law: Any, tokenizer: Any, tmp_path: Path) -> None:
    document = tokenizer.decode(law.train[3].tolist())
    sea = "The waves rise and fall, and nobody counts them at all."
    answers = {"What does the law say?": document, "And the sea?": sea}
    chats = [
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
        for question, answer in answers.items()
    ]
    train = [np.array(tokenizer.encode(chat).ids, np.uint16) for chat in chats]
    write_routing(tmp_path, law, tokenizer, Domain("chat", train, [], [], 0))
    assert json.loads((tmp_path / "routing.json").read_text())["examples"][16:17] == ["What does the law say?"]


def test_no_measured_chat_is_among_the_installed_examples() -> None:
    folders = [INSTALLED / "adapters" / name for name in ADAPTERS]
    examples = {text for folder in folders for text in json.loads((folder / "routing.json").read_text())["examples"]}
    assert not examples & {turn for chats in CHATS.values() for chat in chats for turn in chat.turns}


def test_examples_are_written_again_and_the_choices_measured(
    base: Path, corpus: Path, law: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server and its choices are replaced here; the command that trains measures real ones."""
    folder = tmp_path / "adapters"
    (folder / "law").mkdir(parents=True)
    results = json.loads((INSTALLED / "adapters" / "results.json").read_text())
    entry = results["adapters"]["legal"]
    (folder / "results.json").write_text(json.dumps(results | {"adapters": {"law": entry}, "auto": None}))
    monkeypatch.setattr(train_adapters, "serving", lambda *_: nullcontext((None, "base")))
    monkeypatch.setattr(train_adapters, "measure_auto", lambda *_: results["auto"])
    monkeypatch.setattr(train_adapters, "render", lambda found: ", ".join(found["adapters"]))
    written = train_adapters.write_examples(corpus, tmp_path, base)
    assert written == json.loads((folder / "results.json").read_text())
    assert written["auto"] == results["auto"]
    assert written["adapters"]["law"]["files"] == train_adapters.describe_files(folder / "law")
    assert (folder / "README.md").read_text() == "law"


@pytest.mark.slow
def test_one_command_trains_saves_and_measures_everything(
    corpus: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_adapters, "LENGTH", 32)
    plan = train_adapters.Plan(("law", "sea"), "law", experts=VariantShape(share=0.3, layers=1), tuning=TUNING)
    results = train_adapters.train_all(corpus, tmp_path, plan, base)
    assert json.loads((tmp_path / "adapters" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["adapters"]["sea"]["files"] == train_adapters.describe_files(tmp_path / "adapters" / "sea")
    assert results["variants"]["law"]["files"] == train_adapters.describe_files(tmp_path / "variants" / "law")
    assert [*results["served"]] == ["law", "sea", ":law"]
    for entry in results["served"].values():
        assert entry["served"] == pytest.approx(entry["trained"], rel=0.01)
    assert sum(results["auto"]["chosen"]["sea"].values()) > 0
    assert (tmp_path / "adapters" / "README.md").read_text() == render(results)


def test_a_domain_that_the_corpus_lacks_is_refused(corpus: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no domain 'legal'; choose among law, sea"):
        train_adapters.train_all(corpus, tmp_path, train_adapters.Plan(), base)


def test_changes_have_a_sign() -> None:
    assert (change(10.0, 9.5), change(10.0, 11.0)) == ("-5.0%", "+10.0%")


def test_the_installed_files_are_those_that_were_measured() -> None:
    results = json.loads((INSTALLED / "adapters" / "results.json").read_text())
    assert results["base"] == train_adapters.describe_files(INSTALLED / "model")["model.safetensors"], (
        "the bundled model is another one; run training.train_adapters again"
    )
    for kind in ("adapters", "variants"):
        folders = {folder.name: folder for folder in (INSTALLED / kind).glob("*/") if not is_gate(folder)}
        assert folders.keys() == results[kind].keys()
        for name, folder in folders.items():
            assert train_adapters.describe_files(folder) == results[kind][name]["files"]


def test_the_installed_page_is_that_of_the_results() -> None:
    folder = INSTALLED / "adapters"
    assert (folder / "README.md").read_text() == render(json.loads((folder / "results.json").read_text()))


@pytest.mark.parametrize("name", ["legal", "python", "recipes"])
def test_an_installed_adapter_helps_its_own_domain(name: str) -> None:
    results = json.loads((INSTALLED / "adapters" / "results.json").read_text())
    own = results["adapters"][name]["perplexity"][name]
    assert own["after"] < own["before"]
