import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.demo.errors import RunError
from server.demo.export import export, load_run
from server.demo.train import Trainer
from tests.server.demo.conftest import SETTINGS, TINY

CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "again"},
]


@pytest.fixture
def run(tmp_path, domains, tokenizer):
    with ThreadPoolExecutor(2) as pool:
        trainer = Trainer(tmp_path, SETTINGS, domains, tokenizer.get_vocab_size(), pool, shape=TINY)
        trainer.step()
        trainer.save()
    return tmp_path


@pytest.fixture
def model_folder(run, tokenizer_file):
    export(run, run / "model", tokenizer_file, shape=TINY)
    return run / "model"


def test_exported_model_gives_the_logits_of_the_run(run, model_folder):
    rows = torch.arange(20)[None]
    ours = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)(input_ids=rows).logits
    torch.testing.assert_close(ours, load_run(run, shape=TINY)(input_ids=rows).logits)


def test_weights_are_bfloat16_and_named_by_expert(model_folder):
    weights = load_file(model_folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in weights


def test_config_has_the_hubs_names_and_nothing_of_training(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    assert config["num_experts"] == TINY.num_experts
    assert not {"num_local_experts", "experts_implementation", "attn_implementation"} & set(config)


def test_generation_stops_at_the_end_of_a_turn_and_of_a_text(model_folder):
    config = json.loads((model_folder / "generation_config.json").read_text())
    assert config["eos_token_id"] == [0, 2]


def test_chat_template_makes_the_tokens_of_the_corpus(model_folder, tokenizer):
    loaded = AutoTokenizer.from_pretrained(model_folder)
    document = (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
        "<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = loaded.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode(document).ids


def test_message_without_content_renders_empty(model_folder):
    loaded = AutoTokenizer.from_pretrained(model_folder)
    text = loaded.apply_chat_template([{"role": "assistant", "content": None}], tokenize=False)
    assert text == "<|im_start|>assistant\n<|im_end|>\n"


def test_run_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(RunError, match="train first"):
        load_run(tmp_path)
