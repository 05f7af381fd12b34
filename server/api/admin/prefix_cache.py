"""``/reset_prefix_cache``, as vLLM's: the cached beginnings of prompts are forgotten."""

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response

from server.api.core.access.audit import audited
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import AdminDep

router = APIRouter(tags=["requests"], dependencies=[AdminDep])


@router.post("/reset_prefix_cache", response_class=Response)
async def reset_prefix_cache(service: ServiceDep) -> Response:
    """Let later requests reuse no KV cache of earlier ones. Running requests go on."""
    with audited("prefix_cache.reset"):
        await asyncio.to_thread(service.base_model.engine.reset_prefix_cache)
    return Response()
