"""An exported model, beside the run that it comes from."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from server.api.tool_parsers.chat_format import ChatFormat
from server.engine.interface import ChatTraits
from server.model.checkpoint.locate import BUNDLED
from tests.training.conftest import SETTINGS, TINY
from training.corpus import END_OF_TEXT
from training.errors import RunError
from training.export import CHAT_TEMPLATE, export, load_run
from training.train import Trainer

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
    assert ids == tokenizer.encode(END_OF_TEXT + document).ids


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_without_tools_every_role_is_rendered_as_in_the_corpus(add_generation_prompt):
    messages = [{"role": "system", "content": " Be kind\n"}, *CHAT, {"role": "tool", "content": "42"}]
    text = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    rendered, _ = render_jinja_template(
        [messages], chat_template=CHAT_TEMPLATE, add_generation_prompt=add_generation_prompt
    )
    assert rendered == [END_OF_TEXT + text + "<|im_start|>assistant\n" * add_generation_prompt]


def test_the_bundled_model_has_the_template_of_the_export():
    bundled = BUNDLED / "tokenizer_config.json"
    assert json.loads(bundled.read_text())["chat_template"] == CHAT_TEMPLATE


def test_the_template_shows_tools_and_calls_as_the_server_reads_them():
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "é"}}}
    messages = [*CHAT, {"role": "assistant", "content": "", "tool_calls": [call]}]
    (text,), _ = render_jinja_template([messages], tools=[tool], chat_template=CHAT_TEMPLATE)
    assert json.dumps(tool) in text
    assert text.endswith('<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call><|im_end|>\n')
    chat_format = ChatFormat.of(ChatTraits(CHAT_TEMPLATE))
    assert chat_format.syntax.openers == ("<tool_call>",)


def test_message_without_content_renders_empty(model_folder):
    loaded = AutoTokenizer.from_pretrained(model_folder)
    text = loaded.apply_chat_template([{"role": "assistant", "content": None}], tokenize=False)
    assert text == f"{END_OF_TEXT}<|im_start|>assistant\n<|im_end|>\n"


def test_run_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(RunError, match="train first"):
        load_run(tmp_path)
