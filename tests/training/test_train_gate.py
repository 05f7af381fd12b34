"""A gate over two adapters of a tiny model, trained for a few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.model.checkpoint.locate import BUNDLED
from server.model.lora.gate_files import read_gate
from server.model.lora.pages import page_layout
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk.fingerprint import fingerprint
from server.model.trunk_loader import load_trunk
from training import train_gate
from training.errors import CorpusError, DemoError
from training.gate_readme import render
from training.gate_training import GateShape, Mixture
from training.lora_training import LoraShape, train_adapter
from training.tuning import Tuning, mean_loss, prepare_text, tune

NAMES = ("law", "sea")
TUNING = Tuning(steps=2, length=16, rows=2, eval_every=1, validation_tokens=64)
INSTALLED = BUNDLED.parent / "adapters" / "mixture"


@pytest.fixture
def texts(domains: Any) -> Any:
    return {domain.name: prepare_text(domain, TUNING) for domain in domains}


def make_mixture(base: Path, shape: GateShape | None = None) -> Mixture:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return Mixture(model, NAMES, shape or GateShape(top_k=1))


def test_a_gate_begins_by_telling_domains_apart(base: Path, texts: Any) -> None:
    mixture = make_mixture(base)
    mixture.begin_gate({name: text.train[:8] for name, text in texts.items()})
    chosen: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
    for name in NAMES:
        hooks = [
            layer.register_forward_pre_hook(
                lambda module, args, name=name: chosen[name].append(module.factors(args[0]).flatten(0, 1))  # type: ignore[misc]
            )
            for layer in mixture.layers.values()
        ]
        mean_loss(mixture.model, texts[name].train[8:16])
        for hook in hooks:
            hook.remove()
    for number, name in enumerate(NAMES):
        share = float(torch.cat(chosen[name]).mean(0)[number])
        assert share > 0.6


def test_training_lowers_the_loss_and_moves_gate_and_adapters_alone(base: Path, texts: Any) -> None:
    torch.manual_seed(1)
    mixture = make_mixture(base, GateShape(top_k=2))
    mixture.begin_gate({name: text.train[:8] for name, text in texts.items()})
    before = {name: each.detach().clone() for name, each in mixture.model.named_parameters()}
    tuning = replace(TUNING, steps=20, eval_every=10)
    tuned = tune(mixture.model, mixture, train_gate.mix([*texts.values()]), 1e-2, tuning=tuning)
    assert tuned.perplexities[1] < tuned.perplexities[0]
    changed = {name for name, each in mixture.model.named_parameters() if not torch.equal(each, before[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"down", "up", "gate"}


def test_rows_of_the_domains_alternate(texts: Any) -> None:
    mixed = train_gate.mix([*texts.values()])
    assert [row.tolist() for row in mixed.train[:4]] == [
        texts[name].train[index].tolist() for index in range(2) for name in NAMES
    ]


def test_the_server_can_read_what_was_saved(base: Path, tmp_path: Path) -> None:
    mixture = make_mixture(base)
    trunk = load_trunk(base, torch.float32)
    mixture.save(tmp_path / "mix", fingerprint(trunk))
    targets = lora_targets(trunk)
    files = read_gate(tmp_path / "mix", targets, page_layout(targets).slot_bytes, lambda: fingerprint(trunk))
    assert (files.config.adapters, files.config.top_k, len(files.vectors[0])) == (NAMES, 1, len(mixture.layers))


def test_adapters_begin_from_those_that_peft_has_written(base: Path, texts: Any, tmp_path: Path) -> None:
    shape, law = LoraShape(rank=4, expert_rank=0), texts["law"]
    tuned = train_adapter(
        base, law, shape, tuning=replace(TUNING, steps=8, eval_every=8), out=tmp_path / "law", dtype=torch.float32
    )
    mixture = make_mixture(base)
    mixture.take(0, tmp_path / "law")
    with mixture.fixed({"law": 1.0}):
        loss = mean_loss(mixture.model, law.validation)
    assert 2.718281828**loss == pytest.approx(tuned.perplexities[1], rel=1e-3)
    with pytest.raises(DemoError, match="has no addition of rank 8"):
        make_mixture(base, GateShape(rank=8)).take(0, tmp_path / "law")


@pytest.mark.slow
def test_one_command_trains_saves_and_measures_everything(
    corpus: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_gate, "LENGTH", 32)
    out = tmp_path / "mixture"
    results = train_gate.train_gate(corpus, out, train_gate.Plan(NAMES, tuning=TUNING), base)
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    weights = ["base model", "adapter `law`", "adapter `sea`", "mean of the adapters", "Arrow", "own adapter", "gate"]
    assert [*results["after"]] == weights
    for entry in results["served"].values():
        assert entry["served"] == pytest.approx(entry["trained"], rel=0.01)
    assert results["files"] == train_gate.describe_tree(out)
    assert (out / "README.md").read_text() == render(results)


def test_wrong_domains_and_adapters_are_refused(corpus: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no domain 'legal'; choose among law, sea"):
        train_gate.train_gate(corpus, tmp_path / "mix", train_gate.Plan(), base)
    with pytest.raises(DemoError, match="has 'music', which is none of the domains; choose among law, sea"):
        train_gate.train_gate(corpus, tmp_path / "mix", train_gate.Plan(NAMES, (tmp_path / "music",)), base)


def test_the_installed_gate_is_the_one_that_was_measured() -> None:
    results = json.loads((INSTALLED / "results.json").read_text())
    assert results["base"] == train_gate.describe_file(BUNDLED / "model.safetensors"), (
        "the bundled model is another one; run training.train_gate again"
    )
    assert results["files"] == train_gate.describe_tree(INSTALLED)
    assert (INSTALLED / "README.md").read_text() == render(results)
