"""The report of the bundled model, and the samples in it."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from tests.training.conftest import SETTINGS, TINY, make_documents, write_domain
from training import export as export_module
from training import report, samples
from training.architecture import build_model
from training.errors import RunError
from training.export import export
from training.readme import fence, render, table
from training.samples import first_turn
from training.train import Trainer


def test_first_turn_ends_before_the_answer():
    text = (
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi\nyou<|im_end|>\n"
        "<|im_start|>assistant\nYo<|im_end|>"
    )
    assert first_turn(text) == [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi\nyou"}]


def test_chat_that_the_assistant_begins_has_no_first_turn():
    assert first_turn("<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHi<|im_end|>") == []


def test_fence_is_longer_than_any_in_the_text():
    assert fence("a\n```\nb").startswith("````text\n")


def test_table_has_a_line_a_row():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_run_without_settings_says_how_to_get_them(tmp_path):
    with pytest.raises(RunError, match="run its training command again"):
        report.describe_run(tmp_path)


@pytest.fixture
def chat_corpus(corpus):
    chats = [
        f"<|im_start|>user\n{text[:20]}<|im_end|>\n<|im_start|>assistant\n{text[20:40]}<|im_end|>"
        for text in make_documents("sea", 120)
    ]
    begun_by_the_assistant = [chat.replace("user", "assistant") for chat in chats[:60]]
    write_domain(corpus / "chat.txt", chats + begun_by_the_assistant)
    return corpus


@pytest.fixture
def runs(tmp_path, domains, tokenizer, monkeypatch):
    """A folder with an untrained run of each model, whose small shape ``load_run`` takes for granted."""
    monkeypatch.setattr(
        export_module, "build_model", lambda size, dense, shape: build_model(size, dense=dense, shape=shape or TINY)
    )
    with ThreadPoolExecutor(1) as pool:
        for name in ("moe", "dense"):
            settings = replace(SETTINGS, dense=name == "dense")
            run = tmp_path / name
            run.mkdir()
            Trainer(run, settings, domains, tokenizer.get_vocab_size(), pool, shape=TINY).save()
            (run / "settings.json").write_text(json.dumps(asdict(settings)))
    return tmp_path


def test_report_holds_what_was_measured(runs, chat_corpus, tokenizer_file, monkeypatch):
    monkeypatch.setattr(samples, "TEXT_TOKENS", 4)
    monkeypatch.setattr(samples, "TURN_TOKENS", 4)
    export(runs / "moe", runs / "model", tokenizer_file)
    report.write_report(runs / "model", chat_corpus, runs / "moe", runs / "out", dense_run=runs / "dense")
    results = json.loads((runs / "out" / "results.json").read_text())
    readme = (runs / "out" / "README.md").read_text()
    assert set(results["moe"]["perplexity"]) == set(results["dense"]["perplexity"]) == {"chat", "law", "sea"}
    assert set(results["turns"]) == {"chat"}
    assert len(results["experts"]["mutual_information_bits"]) == TINY.num_hidden_layers
    assert all(len(drawn) <= samples.SAMPLES for drawn in results["samples"].values())
    assert str(runs) not in readme
    assert f"{results['moe']['perplexity']['sea']:.2f}" in readme
    assert (runs / "out" / "experts.png").stat().st_size < 300_000


@pytest.fixture
def short_samples(monkeypatch):
    monkeypatch.setattr(samples, "TEXT_TOKENS", 4)
    monkeypatch.setattr(samples, "TURN_TOKENS", 4)


@pytest.fixture
def first_report(runs, corpus, tokenizer_file, short_samples):
    """A report of the domains without ``tools``."""
    export(runs / "moe", runs / "model", tokenizer_file)
    report.write_report(runs / "model", corpus, runs / "moe", runs / "first", dense_run=runs / "dense")
    return runs / "first/results.json"


@pytest.mark.slow
def test_report_of_a_second_training_stands_beside_the_first(runs, chat_corpus, first_report):
    report.write_report(runs / "model", chat_corpus, runs / "moe", runs / "out", before=first_report)
    before = json.loads(first_report.read_text())
    results = json.loads((runs / "out" / "results.json").read_text())
    readme = (runs / "out" / "README.md").read_text()
    assert results["before"]["perplexity"] == before["moe"]["perplexity"]
    assert results["before"]["dense"] == before["dense"]
    assert results["experts"]["information_on_domains_of_before"] == pytest.approx(
        before["experts"]["mutual_information_bits"], abs=1e-4
    )
    assert f"| {before['moe']['perplexity']['sea']:.2f} | +0.0% |" in readme
    assert "--start MODEL1" in readme
    assert "--before REPORT1/results.json" in readme


@pytest.mark.slow
def test_report_of_a_third_training_tells_of_all_three(runs, chat_corpus, first_report):
    report.write_report(runs / "model", chat_corpus, runs / "moe", runs / "second", before=first_report)
    second = runs / "second/results.json"
    report.write_report(runs / "model", chat_corpus, runs / "moe", runs / "out", before=second)
    results = json.loads((runs / "out/results.json").read_text())
    readme = (runs / "out/README.md").read_text()
    assert results["before"]["before"] == json.loads(second.read_text())["before"]
    assert readme.count("The model was first trained on") == readme.count("It was then trained again on") == 1
    assert "--start MODEL2" in readme
    assert "the MoE is better" in readme


@pytest.mark.slow
def test_readme_compares_means_over_the_domains_of_all_models(runs, chat_corpus, first_report):
    report.write_report(runs / "model", chat_corpus, runs / "moe", runs / "out", before=first_report)
    results = json.loads((runs / "out/results.json").read_text())
    assert "mean of the domains of all models" not in render(results)
    results["before"]["dense"]["perplexity"].pop("sea")
    assert "| **mean of the domains of all models** |" in render(results)


def test_readme_names_settings_that_changed_on_the_way(first_report):
    results = json.loads(first_report.read_text())
    results["runs"]["moe"]["changes"] = [{"step": 30, "tokens": 960, "before": {"tokens": 9, "repeat": {}}}]
    assert "Settings were changed at step 30 (`tokens`, `repeat`), so" in render(results)


def test_report_before_of_other_held_out_text_is_refused(runs, domains, first_report):
    old = json.loads(first_report.read_text())
    old["domains"]["sea"]["held_out_tokens"] += 1
    first_report.write_text(json.dumps(old))
    with pytest.raises(RunError, match="other held-out text of the domain 'sea'"):
        report.describe_before(first_report, domains)


@pytest.mark.parametrize("text", [None, "[]", "{}", "no JSON"])
def test_report_before_that_is_no_report_is_named(tmp_path, domains, text):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError, match=r"--before .*results.json is no results.json of an earlier report"):
        report.describe_before(path, domains)


def test_readme_has_a_table_of_tool_calls(runs, corpus, first_report):
    counts = {"asked": 9, "called": 8, "valid": 7, "right_tools": 6, "right_arguments": 5}
    results = json.loads(first_report.read_text()) | {"calls": {"auto": counts}}
    assert "| auto | 9 | 8 | 7 | 6 | 5 |" in render(results)
