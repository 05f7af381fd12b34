"""Trains and measures one encoder of the comparison of routers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from server.model.greenroom_moe import (
    GreenroomMoeConfig,
    GreenroomMoeForImageClassification,
    GreenroomMoeForSequenceClassification,
)
from server.model.routers.base import Dispatch, Router
from training.router_data import Task

HIDDEN, LAYERS, HEADS, EXPERTS, TOP_K, INTERMEDIATE = 48, 2, 4, 8, 2, 48
BATCH, LEARNING_RATE, WARM_UP = 64, 3e-3, 20
CURVE_POINTS = 12
COMPANY = 16  # sequences that share a batch with the one whose result is compared


@dataclass(frozen=True)
class Variant:
    """A router, and what it is trained with.

    Attributes:
        balance: factor of the balance loss.
        z: factor of the z-loss.
    """

    name: str
    config: Mapping[str, Any]
    balance: float = 0.0
    z: float = 0.0


# The same products for each token: two experts of INTERMEDIATE, or one of twice that, or as many slots as two a token.
DENSE = {"num_local_experts": 1, "num_experts_per_tok": 1, "intermediate_size": TOP_K * INTERMEDIATE}
SWITCH = {"router_type": "switch", "num_experts_per_tok": 1, "intermediate_size": TOP_K * INTERMEDIATE}
VARIANTS = (
    Variant("dense", DENSE),
    Variant("top-2", {}),
    Variant("top-2, balance and z-loss", {}, 0.01, 0.001),
    Variant("top-2, noise", {"has_router_noise": True}),
    Variant("top-2, noise, balance and z-loss", {"has_router_noise": True}, 0.01, 0.001),
    Variant("Switch", SWITCH),
    Variant("Switch, balance and z-loss", SWITCH, 0.01, 0.001),
    Variant("Switch, capacity 1.25", SWITCH | {"capacity_factor": 1.25, "eval_capacity_factor": 1.25}),
    Variant(
        "Switch, capacity 1.25, balance and z-loss",
        SWITCH | {"capacity_factor": 1.25, "eval_capacity_factor": 1.25},
        0.01,
        0.001,
    ),
    Variant("expert choice", {"router_type": "expert_choice", "capacity_factor": float(TOP_K)}),
    Variant("Soft MoE", {"router_type": "soft"}),
)


@dataclass
class Result:
    """Figures of one trained encoder.

    Attributes:
        accuracy: share of held-out examples.
        curve: pairs of the step and the mean training loss since the last.
        cv: coefficient of variation of held-out tokens by expert, mean of the layers.
        max_over_mean: of held-out tokens by expert, mean of the layers.
        dead: experts without a held-out token, of all layers.
        dropped: share of held-out tokens that no expert took, in batches of ``BATCH``.
        moved_by_company: share of held-out examples whose label depends on their batch.
        experts_touched: of a pass over one example, mean of layers and examples.
        bytes_paged: of a request with one example, if no expert is in memory.
    """

    variant: str
    accuracy: float
    seconds: float
    num_parameters: int
    cv: float
    max_over_mean: float
    dead: int
    dropped: float
    moved_by_company: float
    experts_touched: float
    bytes_paged: float
    curve: list[tuple[int, float]] = field(default_factory=list)


def build(variant: Variant, task: Task, vocab_size: int) -> nn.Module:
    """Return a new encoder for a task."""
    torch.manual_seed(1)
    size = task.inputs.shape[-1]
    num_tokens = (size // 2) ** 2 if task.is_vision else size
    settings = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "slots_per_expert": num_tokens * TOP_K // EXPERTS,
        "vocab_size": vocab_size,
        "max_position_embeddings": 512,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "id2label": dict(enumerate(task.names)),
        "label2id": {name: place for place, name in enumerate(task.names)},
        "image_size": size if task.is_vision else 0,
    }
    config = GreenroomMoeConfig(**(settings | dict(variant.config)))
    kind = GreenroomMoeForImageClassification if task.is_vision else GreenroomMoeForSequenceClassification
    return kind(config)


@contextmanager
def dispatches(model: nn.Module) -> Iterator[dict[Router, list[Dispatch]]]:
    """Record what each router returns."""
    found: dict[Router, list[Dispatch]] = {router: [] for router in model.modules() if isinstance(router, Router)}
    handles = [
        router.register_forward_hook(lambda module, _, dispatch: found[module].append(dispatch)) for router in found
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def balance_loss(dispatch: Dispatch, num_experts: int) -> torch.Tensor:
    """Return ``E * sum(f_i P_i)``: shares of rows times mean scores of each expert; 1 if both are even.

    Switch Transformers (arXiv 2101.03961), equations 4 to 6; for several experts a token as in transformers.
    """
    shares = torch.bincount(dispatch.experts, minlength=num_experts) / max(1, len(dispatch.experts))
    return num_experts * (shares * dispatch.scores.mean(0)).sum()


def z_loss(dispatch: Dispatch) -> torch.Tensor:
    """Return the mean square of the logarithm of the sum of exponentials (ST-MoE, arXiv 2202.08906, equation 5)."""
    return dispatch.logits.logsumexp(-1).square().mean()


def train(variant: Variant, task: Task, vocab_size: int, steps: int) -> tuple[nn.Module, Result]:
    """Train an encoder with AdamW on random batches, and measure it."""
    model, began = build(variant, task, vocab_size), time.process_time()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
    )
    generator = torch.Generator().manual_seed(2)
    curve, losses = [], []
    model.train()
    for step in range(steps):
        batch = torch.randint(len(task.labels), (BATCH,), generator=generator)
        with dispatches(model) as found:
            loss: torch.Tensor = model(task.inputs[batch], labels=task.labels[batch]).loss
        losses.append(loss.item())
        for router, each in found.items():
            if variant.balance or variant.z:
                loss = loss + variant.balance * balance_loss(each[0], router.num_experts) + variant.z * z_loss(each[0])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) * CURVE_POINTS // steps > step * CURVE_POINTS // steps:
            curve.append((step + 1, sum(losses) / len(losses)))
            losses = []
    result = measure(model, variant, task)
    result.seconds, result.curve = time.process_time() - began, curve
    return model, result


@torch.inference_mode()
def measure(model: nn.Module, variant: Variant, task: Task) -> Result:
    """Measure an encoder on the held-out examples."""
    model.eval()
    inputs, labels = task.held_out
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    with dispatches(model) as found:
        predicted = torch.cat([model(part).logits.argmax(-1) for part in torch.split(inputs[order], BATCH)])
    loads = [
        torch.bincount(torch.cat([each.experts for each in all_of]), minlength=router.num_experts).double()
        for router, all_of in found.items()
    ]
    dropped = torch.cat([each.dropped for all_of in found.values() for each in all_of]).double().mean()
    with dispatches(model) as alone:
        single = torch.cat([model(example.unsqueeze(0)).logits.argmax(-1) for example in inputs[order]])
    touched = [len(torch.unique(each.experts)) for all_of in alone.values() for each in all_of]
    experts = [parameter for name, parameter in model.named_parameters() if ".experts." in name]
    expert_bytes = sum(each[0].numel() for each in experts) * 2 / LAYERS  # in bfloat16
    mean_touched = sum(touched) / len(touched)
    return Result(
        variant.name,
        accuracy=float((predicted == labels[order]).double().mean()),
        seconds=0.0,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        cv=_mean([float(load.std(correction=0) / load.mean()) for load in loads]),
        max_over_mean=_mean([float(load.max() / load.mean()) for load in loads]),
        dead=sum(int((load == 0).sum()) for load in loads),
        dropped=float(dropped),
        moved_by_company=float((predicted != single).double().mean()),
        experts_touched=mean_touched,
        bytes_paged=mean_touched * LAYERS * expert_bytes,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
