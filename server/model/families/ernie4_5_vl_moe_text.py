"""The text part of ERNIE 4.5 VL: ERNIE 4.5 with positions of three axes, and experts of their own for images."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Experts, ImageExperts, Layer, Mlp, PairAngles, Rotary
from server.model.families.ernie4_5_moe import attention, router, shared_experts


def declare(config: Any) -> Declaration:
    mixer = attention(config)
    experts = Experts(
        module="mlp.text_moe.experts",
        router=router(config, "mlp.text_moe.gate"),
        images=ImageExperts(
            block="mlp.vision_moe",
            module="mlp.vision_moe.experts",
            router=router(config, "mlp.vision_moe.gate"),
        ),
    )
    kinds = {
        "dense": Layer(mixer=mixer, mlp=Mlp()),
        "sparse": Layer(mixer=mixer, experts=experts, mlp=shared_experts(config)),
    }
    return Declaration(
        layers=[kinds[kind] for kind in config.mlp_layer_types],
        rotary=[Rotary(columns=PairAngles.EVERY_OTHER, num_axes=3)],
    )
