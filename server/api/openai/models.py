"""``/v1/models``: the models that the server serves."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[UserDep])


@router.get("")
async def list_models(service: ServiceDep) -> JSONResponse:
    names = service.model_names()
    return JSONResponse({"object": "list", "data": [card(name, service.loaded_model(name)) for name in names]})


@router.get("/{name:path}")  # the id of a repository contains a slash
async def get_model(name: str, service: ServiceDep) -> JSONResponse:
    return JSONResponse(card(name, service.loaded_model(name)))


def tasks(model: LoadedModel) -> list[str]:
    """Return what the model is for: ``generate``, ``embed``, ``classify``."""
    engine = model.engine
    found = {"generate": not engine.is_encoder, "embed": bool(engine.hidden_size), "classify": bool(engine.labels)}
    return [name for name, is_served in found.items() if is_served]


def card(name: str, model: LoadedModel) -> dict[str, Any]:
    """Return OpenAI's model object for a name or an alias.

    It has vLLM's ``root``, ``parent`` and ``max_model_len`` as well, and a ``meta`` that begins like llama.cpp's.
    """
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "greenroom",
        "root": model.root,
        "parent": model.base,
        "max_model_len": model.engine.max_model_len,
        "meta": {
            "n_params": model.card.num_parameters,
            "size": model.card.weight_bytes,
            "format": model.card.format,
            "architecture": model.card.family,
            "quantization": model.card.weights,
            "tasks": tasks(model),
            **({"labels": model.engine.labels} if model.engine.labels else {}),
        },
    }
