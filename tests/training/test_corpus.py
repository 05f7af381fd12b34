"""The corpus as it is read, held out and cut into rows."""

import numpy as np
import pytest
import zstandard

from tests.training.conftest import make_documents, write_domain
from training.corpus import (
    Batches,
    encode_documents,
    find_domains,
    read_corpus,
    read_documents,
    rows_of,
    split_documents,
)
from training.errors import CorpusError


def test_documents_end_at_their_marks(tmp_path):
    path = tmp_path / "sea.txt"
    path.write_text("first\nline\n<|endoftext|>\nsecond says <|endoftext|> inside\n<|endoftext|>")
    assert read_documents(path) == ["first\nline", "second says <|endoftext|> inside"]


def test_compressed_and_plain_files_read_alike(tmp_path):
    plain = tmp_path / "sea.txt"
    write_domain(plain, ["one", "two\n\nthree"])
    packed = tmp_path / "law.txt.zst"
    packed.write_bytes(zstandard.compress(plain.read_bytes()))
    assert read_documents(packed) == read_documents(plain) == ["one", "two\n\nthree"]


def test_domains_are_named_by_their_files_in_order(tmp_path):
    for name in ("sea.txt", "law.txt.zst", "CREDITS-sea.txt", "README.txt", "notes.md"):
        (tmp_path / name).touch()
    assert list(find_domains(tmp_path)) == ["law", "sea"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        find_domains(tmp_path / "nowhere")


def test_folder_without_domains_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"no DOMAIN\.txt"):
        find_domains(tmp_path)


def test_domain_given_twice_is_refused(tmp_path):
    (tmp_path / "sea.txt").touch()
    (tmp_path / "sea.txt.zst").touch()
    with pytest.raises(CorpusError, match=r"'sea' has two files"):
        find_domains(tmp_path)


@pytest.mark.parametrize(("name", "content"), [("sea.txt", b"\xff\xfe"), ("sea.txt.zst", b"not zstandard")])
def test_unreadable_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=f"cannot read .*{name}"):
        read_documents(tmp_path / name)


def test_held_out_documents_are_not_trained_on():
    documents = make_documents("sea", 500)
    train, held_out = split_documents("sea", documents)
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(documents)


def test_split_stays_when_documents_are_added():
    documents = make_documents("sea", 1000)
    _, before = split_documents("sea", documents[:500])
    _, after = split_documents("sea", documents[::-1])
    assert 1 < len(before) < 30
    assert set(before) == set(after) & set(documents[:500])


def test_small_domain_still_holds_one_document_out():
    train, held_out = split_documents("sea", ["a", "b", "c"])
    assert (len(train), len(held_out)) == (2, 1)


@pytest.mark.parametrize("documents", [[], ["alone"], ["twice", "twice"]])
def test_domain_too_small_to_split_is_refused(documents):
    with pytest.raises(CorpusError, match="one to hold out"):
        split_documents("sea", documents)


def test_training_document_that_quotes_another_domains_held_out_text_is_left_out(corpus, tokenizer):
    _, held_out = split_documents("law", make_documents("law", 120))
    quote = "they read aloud: " + " ".join(held_out[0].split()[:12])
    write_domain(corpus / "sea.txt", [*make_documents("sea", 120), quote])
    sea = read_corpus(corpus, tokenizer)[1]
    texts = [tokenizer.decode(document.tolist()) for document in sea.train]
    assert sea.dropped == 1
    assert quote not in texts


def test_documents_end_with_the_end_token(tokenizer):
    (document,) = encode_documents(tokenizer, ["ab"])
    assert tokenizer.decode(document[:-1].tolist()) == "ab"
    assert document[-1] == tokenizer.token_to_id("<|endoftext|>")


def test_every_token_but_the_first_is_a_target_once():
    documents = [np.arange(7, dtype=np.uint16), np.arange(7, 13, dtype=np.uint16)]
    rows = rows_of(documents, length=4)
    assert rows[:, 1:].flatten().tolist() == list(range(1, 13))
    assert rows[:, :-1].flatten().tolist() == list(range(12))


def test_text_too_short_for_a_row_gives_none():
    assert rows_of([np.arange(3, dtype=np.uint16)], length=4).shape == (0, 5)


def test_batches_depend_on_their_position_alone(domains):
    straight = Batches(domains, length=16, repeat={}, seed=1, count=8)
    taken = {position: straight.take(position)[0] for position in range(0, 3 * straight.per_epoch, 8)}
    jumping = Batches(domains, length=16, repeat={}, seed=1, count=8)
    for position in sorted(taken, key=lambda position: position * 7 % 31):
        np.testing.assert_array_equal(jumping.take(position)[0], taken[position])


def test_epochs_are_shuffled_differently(domains):
    batches = Batches(domains, length=16, repeat={}, seed=1, count=8)
    first = batches.take(0)[0]
    assert not np.array_equal(first, batches.take(batches.per_epoch)[0])


def test_repeated_domain_comes_that_often(domains):
    once = Batches(domains, length=16, repeat={}, seed=1, count=8)
    twice = Batches(domains, length=16, repeat={"law": 2}, seed=1, count=8)
    assert (twice.labels == 0).sum() == 2 * (once.labels == 0).sum()
    assert (twice.labels == 1).sum() == (once.labels == 1).sum()


def test_corpus_smaller_than_a_batch_is_refused(domains):
    with pytest.raises(CorpusError, match="lower --batch-tokens"):
        Batches(domains, length=16, repeat={}, seed=1, count=100_000)
