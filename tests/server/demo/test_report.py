import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from server.demo import export as export_module
from server.demo import report, samples
from server.demo.architecture import build_model
from server.demo.errors import RunError
from server.demo.export import export
from server.demo.readme import fence, table
from server.demo.samples import first_turn
from server.demo.train import Trainer

from .conftest import SETTINGS, TINY, make_documents, write_domain


def test_first_turn_ends_before_the_answer():
    text = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi\nyou<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>"
    assert first_turn(text) == [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi\nyou"}]


def test_fence_is_longer_than_any_in_the_text():
    assert fence("a\n```\nb").startswith("````text\n")


def test_table_has_a_line_a_row():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_run_without_settings_says_how_to_get_them(tmp_path):
    with pytest.raises(RunError, match="start its training command once more"):
        report.describe_run(tmp_path)


@pytest.fixture
def chat_corpus(corpus):
    chats = [
        f"<|im_start|>user\n{text[:20]}<|im_end|>\n<|im_start|>assistant\n{text[20:40]}<|im_end|>"
        for text in make_documents("sea", 120)
    ]
    write_domain(corpus / "chat.txt", chats)
    return corpus


def test_report_holds_what_was_measured(tmp_path, chat_corpus, domains, tokenizer, tokenizer_file, monkeypatch):
    monkeypatch.setattr(samples, "TEXT_TOKENS", 4)
    monkeypatch.setattr(samples, "TURN_TOKENS", 4)
    monkeypatch.setattr(
        export_module, "build_model", lambda size, dense, shape: build_model(size, dense=dense, shape=shape or TINY)
    )
    with ThreadPoolExecutor(1) as pool:
        for dense in (False, True):
            settings = replace(SETTINGS, dense=dense)
            run = tmp_path / ("dense" if dense else "moe")
            run.mkdir()
            Trainer(run, settings, domains, tokenizer.get_vocab_size(), pool, shape=TINY).save()
            (run / "settings.json").write_text(json.dumps(asdict(settings)))
    export(tmp_path / "moe", tmp_path / "model", tokenizer_file)
    report.write_report(tmp_path / "model", chat_corpus, tmp_path / "moe", tmp_path / "dense", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    readme = (tmp_path / "out" / "README.md").read_text()
    assert set(results["moe"]["perplexity"]) == set(results["dense"]["perplexity"]) == {"chat", "law", "sea"}
    assert set(results["turns"]) == {"chat"}
    assert len(results["experts"]["mutual_information_bits"]) == TINY.num_hidden_layers
    assert all(len(drawn) <= samples.SAMPLES for drawn in results["samples"].values())
    assert str(tmp_path) not in readme
    assert f"{results['moe']['perplexity']['sea']:.2f}" in readme
    assert (tmp_path / "out" / "experts.png").stat().st_size < 300_000
