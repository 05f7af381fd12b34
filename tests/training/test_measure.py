"""Measurements on held-out text, and of the use of experts."""

import math

import numpy as np
import pytest
import torch

from tests.training.conftest import TINY
from training.architecture import build_model
from training.measure import (
    ExpertCounter,
    held_out_batches,
    mean_perplexity,
    measure,
    most_information,
    mutual_information,
    variation,
)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return build_model(tokenizer.get_vocab_size(), dense=False, shape=TINY).eval()


def test_every_held_out_token_is_measured_once():
    documents = [np.arange(1, 8, dtype=np.uint16), np.arange(8, 12, dtype=np.uint16)]
    batches = list(held_out_batches(documents, length=4))
    assert torch.cat([rows[:, 1:].flatten() for rows in batches]).tolist() == list(range(1, 12))


def test_text_shorter_than_a_row_is_measured_too():
    (rows,) = held_out_batches([np.arange(1, 4, dtype=np.uint16)], length=8)
    assert rows.tolist() == [[0, 1, 2, 3]]


def test_uniform_model_has_the_vocabulary_as_perplexity(model, domains):
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    held = [measure(model, domain, length=16) for domain in domains]
    assert held[0].perplexity == pytest.approx(model.config.vocab_size, rel=1e-4)
    assert mean_perplexity(held) == pytest.approx(model.config.vocab_size, rel=1e-4)


def test_bits_per_byte_counts_the_bytes_of_the_text(model, domains):
    held = measure(model, domains[0], length=16)
    assert held.num_tokens == sum(map(len, domains[0].held_out))
    assert held.num_bytes == held.num_tokens - len(domains[0].held_out)  # one token a byte, and one an end mark
    assert held.bits_per_byte == pytest.approx(held.nats / math.log(2) / held.num_bytes)


def test_each_token_is_counted_at_each_layer(model, domains):
    held = measure(model, domains[0], length=16)
    assert [counts.sum() for counts in held.counts] == [2 * held.num_tokens] * TINY.num_hidden_layers


def test_counter_counts_only_while_it_is_entered(model):
    counter = ExpertCounter(model)
    with counter:
        model(input_ids=torch.arange(5)[None])
    model(input_ids=torch.arange(5)[None])
    assert counter.counts[0].sum() == 2 * 5


def test_domains_that_share_nothing_have_their_entropy_in_common_with_experts():
    assert mutual_information(np.eye(4)) == pytest.approx(2.0)
    assert mutual_information(np.eye(4)) == pytest.approx(most_information(4, 4, top_k=1))


def test_domains_that_use_experts_equally_have_no_mutual_information():
    assert mutual_information(np.tile([0.5, 0.3, 0.2, 0.0], (3, 1))) == pytest.approx(0.0, abs=1e-12)


def test_information_is_bounded_by_the_experts_a_token_needs():
    pairs = np.kron(np.eye(2), [0.5, 0.5])  # two domains, each with two of four experts to itself
    assert mutual_information(pairs) == pytest.approx(most_information(num_domains=8, num_experts=4, top_k=2))


def test_variation_is_of_the_use_over_all_domains():
    assert variation(np.array([[1.0, 0.0], [0.0, 1.0]])) == 0
    assert variation(np.array([[1.0, 0.0], [1.0, 0.0]])) == 1
