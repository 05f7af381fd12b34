"""The next layer's router is found by the shapes of its weights, whatever its name."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers

from server.model.checkpoint.tensor_map import experts_modules, layer_numbers
from server.model.experts.next_layer_gate import GateInput, find_next_layer_gates, find_routers
from server.model.experts.replacements import replace_experts
from server.model.experts.router import RouterSample, find_router
from server.model.hooks import IMPLEMENTATION, AttentionOptions, use_hooks
from tests.checkpoints import COMMON, CONFIGS, LATENT
from tests.families import make_config

MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
FURTHER: dict[str, Any] = {
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **COMMON, **MOE, intermediate_size=48, shared_expert_intermediate_size=24, num_experts=8
    ),
    "glm4_moe": lambda: transformers.Glm4MoeConfig(
        **COMMON, **MOE, head_dim=8, intermediate_size=48, n_routed_experts=8, n_shared_experts=1
    ),
    "granitemoe": lambda: transformers.GraniteMoeConfig(
        **COMMON, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2
    ),
    "phimoe": lambda: transformers.PhimoeConfig(
        **COMMON, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2, sliding_window=None
    ),
    "ernie4_5_moe": lambda: transformers.Ernie4_5_MoeConfig(
        **COMMON, intermediate_size=48, moe_intermediate_size=24, moe_num_experts=8, moe_k=2, moe_layer_start_index=1
    ),
    "hunyuan_v1_moe": lambda: transformers.HunYuanMoEV1Config(
        **COMMON, head_dim=8, intermediate_size=24, num_experts=8, moe_topk=2
    ),
    "deepseek_v3_ungrouped": lambda: transformers.DeepseekV3Config(**LATENT, n_group=1, topk_group=1),
    "dots1": lambda: transformers.Dots1Config(
        **COMMON, **MOE, intermediate_size=48, n_routed_experts=8, n_shared_experts=1, n_group=1, topk_group=1
    ),
    "flex_olmo": lambda: transformers.FlexOlmoConfig(
        **COMMON, intermediate_size=24, num_experts=8, num_experts_per_tok=2
    ),
    "lfm2_moe": lambda: transformers.Lfm2MoeConfig(
        **COMMON, **MOE, intermediate_size=48, num_experts=8, num_dense_layers=1, layer_types=["full_attention"] * 3
    ),
    **{name: partial(make_config, name) for name in ("dbrx", "jetmoe", "llama4_text")},
    "minimax_m2": lambda: transformers.MiniMaxM2Config(
        **COMMON, head_dim=8, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2
    ),
}
GROUPED = ("deepseek_v3",)  # chooses among the best groups only


class Recorder:
    """Hooks that record the arguments of each experts module, with minimal attention and no experts."""

    def __init__(self) -> None:
        self.routed: dict[Any, RouterSample] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        return value.repeat_interleave(len(query) // len(value), 0).transpose(0, 1)

    def run_experts(
        self, module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        self.routed[module] = RouterSample(hidden_states, top_k_index)
        return torch.zeros_like(hidden_states)


def run(config: Any, num_tokens: int = 24) -> tuple[Any, dict[Any, int], dict[Any, RouterSample]]:
    """Return a random model, its MoE layers, and their arguments in a step."""
    torch.manual_seed(0)
    config._attn_implementation = config._experts_implementation = IMPLEMENTATION
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    replace_experts(model)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "bias" in name.rpartition(".")[2]:
                tensor.normal_(std=0.3)
            elif "rotary" not in name and tensor.ndim >= 2:
                tensor.normal_(std=tensor.shape[-1] ** -0.5)
    modules = experts_modules(model)
    numbers = layer_numbers(list(modules))
    recorder = Recorder()
    ids = torch.arange(num_tokens)[None]
    with use_hooks(recorder), torch.inference_mode():
        model.eval()(input_ids=ids, position_ids=ids, use_cache=False)
    return model, {module: numbers[name] for name, module in modules.items()}, recorder.routed


def chosen(index: Any) -> list[set[int]]:
    return [set(row) for row in torch.as_tensor(index).tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, *FURTHER])
def test_each_router_is_found_and_chooses_as_the_model_does(name: str) -> None:
    model, layers, routed = run({**CONFIGS, **FURTHER}[name]())
    names = {module: path for path, module in model.named_modules()}
    assert len(layers) >= 2
    for module in layers:
        router = find_router(model, names[module], routed[module])
        assert router is not None
        sample = routed[module]
        choices = router.choose(sample.hidden_states, sample.top_k_index.shape[-1])
        common = sum(len(a & b) for a, b in zip(chosen(choices), chosen(sample.top_k_index), strict=True))
        assert common >= (0.5 if name in GROUPED else 1.0) * sample.top_k_index.numel()


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "ernie4_5_moe"])
def test_a_gate_is_the_next_layers_router(name: str) -> None:
    """On the next layer's own input, the gate predicts the next layer's choices, best first."""
    model, layers, routed = run({**CONFIGS, **FURTHER}[name]())
    gates = find_next_layer_gates(find_routers(model, layers, routed), layers, routed)
    assert list(gates) == list(layers.values())[:-1]
    for (_, layer), (module, _) in pairwise(layers.items()):
        sample = routed[module]
        assert chosen(gates[layer](GateInput(sample.hidden_states))) == chosen(sample.top_k_index)


def test_a_router_that_chooses_otherwise_is_no_gate(caplog: pytest.LogCaptureFixture) -> None:
    """For example where a router has another input than its experts; the log reports it once for each layer."""
    model, layers, routed = run(CONFIGS["qwen3_moe"]())
    last = list(layers)[-1]
    sample = routed[last]
    routed[last] = RouterSample(sample.hidden_states, (sample.top_k_index + 4) % 8)
    with caplog.at_level("INFO"):
        gates = find_next_layer_gates(find_routers(model, layers, routed), layers, routed)
    assert list(gates) == list(layers.values())[:-2]
    assert [record.getMessage().split()[:2] for record in caplog.records] == [["layer", "2"]]


def test_experts_without_a_router_have_no_gate() -> None:
    model, layers, routed = run(CONFIGS["mixtral"]())
    for layer in model.model.layers:
        layer.mlp.gate.weight = torch.nn.Parameter(torch.zeros(3, 5))
    assert find_next_layer_gates(find_routers(model, layers, routed), layers, routed) == {}
