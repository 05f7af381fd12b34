"""A corpus of two small domains, its tokenizer, and models small enough to train in a test."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from training.architecture import Shape, build_model
from training.corpus import END_OF_TEXT, read_corpus
from training.run_settings import Settings

WORDS = {
    "sea": ["wave", "salt", "gull", "tide", "sail", "deck", "foam", "reef", "mast", "crew"],
    "law": ["clause", "court", "judge", "deed", "title", "oath", "bench", "brief", "party", "seal"],
}
TINY = Shape(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_experts=4,
    moe_intermediate_size=8,
)
SETTINGS = Settings(
    tokens=6 * 128,
    batch_tokens=128,
    length=16,
    final_length=32,
    final_share=0.3,
    micro_tokens=64,
    repeat={},
    eval_every=4,
    threads=2,
)


def write_domain(path, documents):
    path.write_text("".join(f"{document}\n{END_OF_TEXT}\n" for document in documents))


def make_documents(domain, count):
    rng = random.Random(domain)
    return [" ".join(rng.choices(WORDS[domain], k=30)) for _ in range(count)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    specials = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_file(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for domain in WORDS:
        write_domain(folder / f"{domain}.txt", make_documents(domain, 120))
    return folder


@pytest.fixture
def domains(corpus, tokenizer):
    return read_corpus(corpus, tokenizer)


@pytest.fixture(scope="module")
def base(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("base")
    build_model(300, dense=False, shape=TINY).bfloat16().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder
