"""Small models with any router: as transformers' classes, and as a server loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from expert_store import ExpertStore, least_bytes
from server.model.errors import ModelError
from server.model.greenroom_moe import (
    GreenroomMoeConfig,
    GreenroomMoeForCausalLM,
    GreenroomMoeForImageClassification,
    GreenroomMoeForSequenceClassification,
)
from server.model.greenroom_moe.configuration import RouterType
from server.model.greenroom_moe.decoder import CAUSAL
from server.model.trunk_loader import load_trunk
from tests.checkpoints import COMMON
from tests.server.model.test_parity import PROMPTS, TOLERANCE, generate

ROUTERS = get_args(RouterType)


def config_of(router_type: str, **changes: Any) -> GreenroomMoeConfig:
    torch.manual_seed(0)
    sizes = {"intermediate_size": 24, "num_local_experts": 6, "num_experts_per_tok": 2, "num_labels": 3}
    return GreenroomMoeConfig(**(COMMON | sizes | changes), router_type=router_type)


@pytest.mark.parametrize("router_type", CAUSAL)
def test_a_decoder_is_served_with_the_logits_of_its_class(router_type: str, tmp_path: Path) -> None:
    GreenroomMoeForCausalLM(config_of(router_type)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    trunk = load_trunk(tmp_path, torch.float32)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    try:
        for prompt, (tokens, logits) in zip(PROMPTS, generate(trunk, store, chunk=3, steps=4), strict=True):
            with torch.inference_mode():
                whole = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            assert (whole - logits).abs().max() <= TOLERANCE * (whole.max() - whole.min())
    finally:
        store.close()


@pytest.mark.parametrize("router_type", [each for each in ROUTERS if each not in CAUSAL])
def test_a_decoder_with_a_router_that_sees_later_tokens_is_refused(router_type: str, tmp_path: Path) -> None:
    config = config_of(router_type, architectures=["GreenroomMoeForCausalLM"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"the router '{router_type}' decides with tokens that are not written yet"):
        load_trunk(tmp_path, torch.float32)


def test_an_unknown_router_is_refused_by_name(tmp_path: Path) -> None:
    config = config_of("switch")
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"switch"', '"hash"'))
    with pytest.raises(ModelError, match="router_type 'hash' is none of top_k, switch, expert_choice, soft"):
        load_trunk(tmp_path, torch.float32)


@pytest.mark.parametrize("router_type", ROUTERS)
def test_a_text_encoder_is_saved_and_loaded_and_ignores_padding(router_type: str, tmp_path: Path) -> None:
    GreenroomMoeForSequenceClassification(config_of(router_type)).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.arange(1, 22).view(3, 7)
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens, mask).logits[1], model(tokens[1:2, :4]).logits[0])


def test_an_encoder_sees_later_tokens() -> None:
    model = GreenroomMoeForSequenceClassification(config_of("top_k")).eval()
    with torch.inference_mode():
        first, second = model.model(torch.tensor([[5, 6, 7], [5, 6, 9]])).last_hidden_state[:, 0]
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("router_type", ROUTERS)
def test_every_parameter_of_a_vision_encoder_is_trained(router_type: str) -> None:
    config = config_of(router_type, image_size=8, capacity_factor=2.0, has_router_noise=True)
    model = GreenroomMoeForImageClassification(config)
    model(torch.rand(4, 1, 8, 8), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_capacity_of_switch_applies_to_training_alone() -> None:
    model = GreenroomMoeForSequenceClassification(config_of("switch", capacity_factor=0.5))
    router: Any = model.model.layers[0].mlp.router
    assert router.may_drop
    model.eval()
    assert router.is_independent


def test_a_decoder_with_a_capacity_in_its_config_is_refused(tmp_path: Path) -> None:
    config_of("switch", architectures=["GreenroomMoeForCausalLM"], eval_capacity_factor=1.25).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"eval_capacity_factor 1.25 makes room by the number of tokens, .* null"):
        load_trunk(tmp_path, torch.float32)


def test_a_decoder_is_refused_a_capacity(tmp_path: Path) -> None:
    GreenroomMoeForCausalLM(config_of("switch")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"--switch-capacity: GreenroomMoeForCausalLM is a decoder, .* leave it out"):
        load_trunk(tmp_path, torch.float32, switch_capacity=1.25)
