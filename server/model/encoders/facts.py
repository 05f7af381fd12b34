"""The facts about an encoder that its config and its modules tell."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from server.model.attention.kv_cache import KVGroup
from server.model.greenroom_moe.mixture import RoutedExperts
from server.model.program import ENCODER_REASON, ModelProgram, Target
from server.model.trunk.base_trunk import TrunkFacts

FLOAT = 4  # bytes


def encoder_facts(model: Any, layers: Collection[int]) -> TrunkFacts:
    """Return the facts about an encoder.

    Args:
        layers: numbers of its layers of experts.
    """
    hidden = int(model.config.hidden_size)
    routers = [module.router for module in model.modules() if isinstance(module, RoutedExperts)]
    names = model.config.id2label
    return TrunkFacts(
        # Nothing is cached; the blocks of a running sequence stand for its last hidden states.
        (KVGroup(None, {}, bytes_elsewhere={0: hidden * FLOAT}),),
        max(router.max_experts(1) for router in routers),
        {},
        tuple(layers),
        ModelProgram.uniform(model, Target.MODULES, ENCODER_REASON),
        is_encoder=True,
        uses_every_expert=all(router.max_experts(1) == router.num_experts for router in routers),
        reads_images=bool(model.config.image_size),
        hidden_size=hidden,
        labels=tuple(names[place] for place in range(len(names))),
    )
