"""Fingerprint of a model, by which a variant recognises its base."""

from __future__ import annotations

from hashlib import blake2b

import torch

from server.model.trunk.base_trunk import BaseTrunk

DIGEST_BYTES = 16


def fingerprint(trunk: BaseTrunk) -> str:
    """Return a hash of a model's type, the numbers of its experts, and its routers in bfloat16.

    It is the same for a checkpoint and its packs, whatever the dtype of compute. Two models with the same routers have
    the same.
    """
    digest = blake2b(digest_size=DIGEST_BYTES)
    digest.update(trunk.config.model_type.encode())
    for layer, entry in trunk.catalog.layers.items():
        digest.update(f" {layer}:{len(entry.experts)}".encode())
        router = trunk.routers.get(layer)
        if router is not None:
            weight = router.weight.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(weight.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
