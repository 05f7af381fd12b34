"""Training runs: resumed, killed, continued from a model."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from tests.training.conftest import SETTINGS, TINY
from training import train as train_module
from training.architecture import build_model, count_parameters
from training.errors import RunError
from training.gradients import add_gradients
from training.run_settings import Settings, learning_rate_scale
from training.train import CHANGES, Trainer, main, train

pytestmark = pytest.mark.slow


@pytest.fixture
def trainer_of(domains, tokenizer):
    """Makes trainers of a run folder."""
    with ThreadPoolExecutor(SETTINGS.threads) as pool:
        yield lambda run, settings=SETTINGS: Trainer(
            run, settings, domains, tokenizer.get_vocab_size(), pool, shape=TINY
        )


def finish(trainer):
    while not trainer.finished:
        trainer.step()
    return trainer


def folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize("dense", [False, True])
def test_killed_run_ends_with_the_same_weights(tmp_path, trainer_of, dense):
    settings = replace(SETTINGS, dense=dense)
    whole = finish(trainer_of(folder(tmp_path / "whole"), settings))
    run = folder(tmp_path / "killed")
    killed = trainer_of(run, settings)
    for _ in range(2):
        killed.step()
    killed.save()
    killed.step()  # lost with the kill
    resumed = trainer_of(run, settings)
    assert resumed.progress.step == 2
    finish(resumed)
    assert resumed.progress == whole.progress
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_run_interrupted_at_any_step_resumes_from_its_checkpoint(tmp_path, corpus, tokenizer_file, monkeypatch):
    settings = replace(SETTINGS, save_minutes=0)
    step = Trainer.step

    def interrupted(self):
        if self.progress.step == 3:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(corpus, tmp_path / "run", tokenizer_file, settings, shape=TINY)
    train(corpus, tmp_path / "run", tokenizer_file, settings, shape=TINY)
    train(corpus, tmp_path / "whole", tokenizer_file, settings, shape=TINY)
    resumed, whole = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("run", "whole"))
    assert resumed["state"] == whole["state"] == {"step": 6, "tokens": 6 * 128}
    assert all(torch.equal(resumed["model"][name], weight) for name, weight in whole["model"].items())


def test_kill_during_a_save_keeps_the_last_checkpoint(tmp_path, trainer_of, monkeypatch):
    trainer = trainer_of(tmp_path)
    trainer.step()
    trainer.save()

    def torn(_state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module.torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert trainer_of(tmp_path).progress.step == 1


@pytest.mark.parametrize("dense", [False, True])
def test_killed_run_in_bfloat16_ends_with_the_same_weights(tmp_path, trainer_of, dense):
    settings = replace(SETTINGS, dense=dense, bfloat16=True)
    whole = finish(trainer_of(folder(tmp_path / "whole"), settings))
    run = folder(tmp_path / "killed")
    killed = trainer_of(run, settings)
    killed.step()
    killed.save()
    resumed = finish(trainer_of(run, settings))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_bfloat16_gives_about_the_same_gradients(tmp_path, trainer_of):
    exact, low = (
        trainer_of(folder(tmp_path / str(low)), replace(SETTINGS, bfloat16=low, balance_weight=0, z_weight=0))
        for low in (False, True)
    )
    rows = torch.from_numpy(exact._batch()[0])
    gradients = []
    for trainer in (exact, low):
        params = list(trainer.model.parameters())
        add_gradients(trainer.computed, params, rows, trainer.settings, step=0, pool=trainer.pool)
        assert {param.grad.dtype for param in params} == {torch.float32}
        gradients.append(torch.cat([param.grad.flatten() for param in params]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_run_that_starts_from_a_model_has_its_weights(tmp_path, trainer_of):
    first = trainer_of(folder(tmp_path / "first"))
    first.step()
    first.model.save_pretrained(tmp_path / "model")
    settings = replace(SETTINGS, seed=2, start=str(tmp_path / "model"))
    second = trainer_of(folder(tmp_path / "second"), settings)
    assert second.progress.step == 0
    for name, weight in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight), name


def test_start_that_is_no_model_is_named(tmp_path, trainer_of):
    with pytest.raises(RunError, match=r"--start .*nowhere is no model of the trained architecture"):
        trainer_of(tmp_path, replace(SETTINGS, start=str(tmp_path / "nowhere")))


def test_same_seed_gives_the_same_weights_and_another_does_not(tmp_path, trainer_of):
    first, second, other = (
        trainer_of(folder(tmp_path / name), replace(SETTINGS, seed=seed))
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    for trainer in (first, second, other):
        trainer.step()
    embeddings = [trainer.model.get_input_embeddings().weight for trainer in (first, second, other)]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])


def test_training_lowers_the_loss(tmp_path, trainer_of):
    trainer = trainer_of(tmp_path, replace(SETTINGS, tokens=40 * 128, muon_lr=0.05, lr=0.02))
    trainer.step()
    first = trainer.losses.mean()
    assert finish(trainer).losses.mean() < first - 0.5


def test_run_logs_loss_and_perplexity_by_domain(tmp_path, corpus, tokenizer_file):
    run = tmp_path / "run"
    train(corpus, run, tokenizer_file, replace(SETTINGS, tokens=10 * 128), shape=TINY)
    (line,) = map(json.loads, (run / "train.jsonl").read_text().splitlines())
    evaluations = [json.loads(text) for text in (run / "eval.jsonl").read_text().splitlines()]
    assert (line["step"], set(line["loss"])) == (10, {"law", "sea"})
    assert len(line["imbalance"]) == TINY.num_hidden_layers
    assert [each["step"] for each in evaluations] == [4, 8, 10]
    assert set(evaluations[-1]["perplexity"]) == {"law", "sea"}
    assert json.loads((run / "settings.json").read_text())["seed"] == SETTINGS.seed


def test_settings_that_change_on_the_way_are_kept(tmp_path, corpus, tokenizer_file):
    for tokens in (6 * 128, 8 * 128, 8 * 128):
        train(corpus, tmp_path / "run", tokenizer_file, replace(SETTINGS, tokens=tokens), shape=TINY)
    (line,) = map(json.loads, (tmp_path / "run" / CHANGES).read_text().splitlines())
    assert line == {"step": 6, "tokens": 6 * 128, "before": {"tokens": 6 * 128}}
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["tokens"] == 8 * 128


def test_checkpoint_of_another_model_is_refused(tmp_path, trainer_of):
    trainer_of(tmp_path).save()
    with pytest.raises(RunError, match="choose another RUN"):
        trainer_of(tmp_path, replace(SETTINGS, dense=True))


def test_batch_that_is_no_multiple_of_rows_is_refused():
    with pytest.raises(RunError, match="100 tokens is not a multiple of rows of 256"):
        Settings(batch_tokens=100)


def test_last_part_is_trained_in_long_rows(tmp_path, trainer_of):
    trainer = trainer_of(tmp_path)
    lengths = []
    while not trainer.finished:
        lengths.append(trainer._batch()[0].shape[1] - 1)
        trainer.step()
    assert lengths == [SETTINGS.length] * 5 + [SETTINGS.final_length]


@pytest.mark.parametrize("case", ["missing", "empty"])
def test_unusable_corpus_is_one_line_of_error(tmp_path, tokenizer_file, monkeypatch, case):
    corpus = tmp_path / case
    if case == "empty":
        corpus.mkdir()
    words = ["train", str(corpus), str(tmp_path / "run"), "--tokenizer", str(tokenizer_file)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert str(stopped.value.code).startswith("error: ")
    assert "\n" not in str(stopped.value.code)
    assert not (tmp_path / "run").exists()


def test_learning_rate_warms_up_holds_and_falls():
    settings = Settings(tokens=1_000_000, batch_tokens=1000, length=100, final_length=100)
    scales = [learning_rate_scale(done, settings) for done in (0, 100_000, 500_000, 750_000, 1_000_000)]
    assert scales == pytest.approx([1 / 30, 1, 1, 0.5, 0.03])


def test_dense_model_has_as_many_parameters_as_the_other_has_active():
    _, active = count_parameters(build_model(4096, dense=False))
    total, dense_active = count_parameters(build_model(4096, dense=True))
    assert total == dense_active
    assert total == pytest.approx(active, rel=0.01)
