"""``/api/tags``, ``/api/ps``, ``/api/show`` and ``/api/version``: the model that the server serves."""

import asyncio
import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.api.core.bodies.fields import Text
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.ollama.body import OllamaBody, OllamaModel
from server.api.ollama.capabilities import capabilities
from server.api.ollama.errors import ERRORS, OllamaRoute
from server.api.ollama.model_names import served_name, tagged
from server.api.ollama.reply_encoder import timestamp
from server.engine.interface import JsonObject

API_VERSION = "0.12.11"  # the version of Ollama whose API these routes follow; some clients refuse older ones
NEVER = "9999-12-31T23:59:59Z"  # a served model is not unloaded

router = APIRouter(tags=["ollama"], dependencies=[UserDep], route_class=OllamaRoute, responses=ERRORS)


class ShowRequest(OllamaModel):
    """Names a model; ``name`` is the field of older clients."""

    model: Text | None = None
    name: Text | None = None
    verbose: Any = None


@router.get("/api/version")
@router.head("/api/version", include_in_schema=False)
async def version(service: ServiceDep) -> JSONResponse:
    return JSONResponse({"version": API_VERSION, "greenroom": service.version})


@router.get("/api/tags")
@router.head("/api/tags", include_in_schema=False)
async def tags(service: ServiceDep) -> JSONResponse:
    base = service.base_model
    listed = {"modified_at": timestamp(base.created), "size": base.card.weight_bytes}
    models = filter(None, map(service.find_model, [base.name, *base.other_names]))
    return JSONResponse({"models": [_named(model) | listed for model in models]})


@router.get("/api/ps")
async def ps(service: ServiceDep) -> JSONResponse:
    model = service.base_model
    device_bytes = model.card.device_bytes()
    running = {
        "size": model.card.host_bytes() + device_bytes,
        "size_vram": device_bytes,
        "expires_at": NEVER,
        "context_length": model.engine.max_model_len,
    }
    return JSONResponse({"models": [_named(model) | running] if service.find_model(None) is not None else []})


@router.post("/api/show")
async def show(body: Annotated[ShowRequest, OllamaBody(ShowRequest)], service: ServiceDep) -> JSONResponse:
    model = service.loaded_model(served_name(service, body.model or body.name))
    return JSONResponse(await asyncio.to_thread(_description, model))


def _description(model: LoadedModel) -> JsonObject:
    """Describe a model; may block the first time."""
    family = model.card.family
    licence = {"license": model.card.licence} if model.card.licence else {}
    return {
        "modelfile": f"FROM {model.name}\n",
        **licence,
        "parameters": _parameters(model),
        "template": model.codec.chat_traits.template,
        "chat_template_kwargs": model.codec.chat_traits.options,
        "details": _details(model),
        "model_info": {
            "general.basename": model.name,
            **model.card.metadata,
            "general.architecture": family,
            "general.parameter_count": model.card.num_parameters,
            f"{family}.context_length": model.engine.max_model_len,
            f"{family}.embedding_length": model.engine.hidden_size,
        },
        "capabilities": capabilities(model),
        "modified_at": timestamp(model.created),
    }


def _parameters(model: LoadedModel) -> str:
    """Return the defaults of sampling, a line each, by Ollama's names."""
    defaults = model.defaults
    named: dict[str, float] = {
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "top_k": defaults.top_k,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
    }
    if defaults.max_new_tokens is not None:
        named["num_predict"] = defaults.max_new_tokens
    stops = [f"{'stop':<30} {json.dumps(stop, ensure_ascii=False)}" for stop in defaults.stop]
    return "\n".join([*(f"{name:<30} {value:g}" for name, value in named.items()), *stops])


def _named(model: LoadedModel) -> JsonObject:
    name = tagged(model.name)
    # There is no digest of the weights; clients use it to tell models apart.
    digest = hashlib.sha256(f"{model.name}\n{model.card.family}\n{model.card.weight_bytes}".encode()).hexdigest()
    return {"name": name, "model": name, "digest": digest, "details": _details(model)}


def _details(model: LoadedModel) -> JsonObject:
    family = model.card.family
    return {
        "parent_model": model.base or "",
        "format": model.card.format,
        "family": family,
        "families": [family],
        "parameter_size": _rounded(model.card.num_parameters),
        "quantization_level": model.card.weights,
    }


def _rounded(count: int) -> str:
    """Return a number of parameters as Ollama writes it: 30.5B, 494.03M."""
    for letter, size, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0)):
        if count >= size:
            return f"{count / size:.{0 if count % size == 0 else digits}f}{letter}"
    return str(count) if count else ""
