"""``/v1/load_lora_adapter``, ``/v1/unload_lora_adapter``, as vLLM has them, and ``/v1/adapters``."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict

from server.api.core.access.audit import audited
from server.api.core.bodies.fields import Text
from server.api.core.errors.api_errors import InvalidRequestError, ModelNotFoundError
from server.api.core.errors.validation import quote
from server.api.core.requests.auto_request import learn_examples
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import AdminDep
from server.api.core.service.service import Service
from server.engine.interface import AdapterAdministration, AdapterExamples, JsonObject, UnknownAdapterError

NO_ADAPTERS = "This server loads no adapters: start it with --adapters-dir."
NONE: dict[str, Any] = {"object": "adapters", "folder": None, "memory": None, "data": []}  # the list of such a server

router = APIRouter(prefix="/v1", tags=["adapters"], dependencies=[AdminDep])


class AdapterName(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    lora_name: Text
    lora_int_id: Any = None  # vLLM's number of it


class AdapterPath(AdapterName):
    """An adapter to load; ``description`` and ``examples`` replace what its folder says of its prompts."""

    lora_path: Text
    load_inplace: bool = False
    description: Text | None = None
    examples: list[Text] | None = None

    @property
    def routing(self) -> AdapterExamples | None:
        """The examples of its prompts; None if the request has none.

        Raises:
            RequestRefusedError: one is empty or too long.

        """
        if self.description is None and self.examples is None:
            return None
        return AdapterExamples.checked(self.description, self.examples)


@router.get("/adapters")
async def list_adapters(service: ServiceDep) -> JSONResponse:
    model = service.loaded_model(None)
    if model.adapters is None:
        return JSONResponse(NONE)
    overview = await asyncio.to_thread(model.adapters.overview)
    for adapter in overview["data"]:
        if adapter["routing"] is not None:
            adapter["routing"]["state"] = _routing_state(model, adapter)
    return JSONResponse(overview)


@router.post("/load_lora_adapter", response_class=PlainTextResponse)
async def load_adapter(body: Annotated[AdapterPath, JsonBody(AdapterPath)], service: ServiceDep) -> PlainTextResponse:
    service.unknown_fields.note(body.model_extra or ())
    model, adapters, examples = service.base_model, adapters_of(service), body.routing
    if examples is not None and examples.texts and not model.engine.hidden_size:
        raise InvalidRequestError(
            "This model gives no embeddings, so no router can compare prompts: leave out 'examples' and 'description'.",
            "examples",
        )
    with audited("adapter.load", adapter=body.lora_name, path=body.lora_path) as line:
        if await asyncio.to_thread(
            adapters.load, body.lora_name, body.lora_path, replace=body.load_inplace, examples=examples
        ):
            line["action"] = "adapter.replace"
    model.profiles.in_background(learn_examples(model))
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/unload_lora_adapter", response_class=PlainTextResponse)
async def unload_adapter(body: Annotated[AdapterName, JsonBody(AdapterName)], service: ServiceDep) -> PlainTextResponse:
    service.unknown_fields.note(body.model_extra or ())
    adapters = adapters_of(service)
    try:
        with audited("adapter.unload", adapter=body.lora_name):
            await asyncio.to_thread(adapters.unload, body.lora_name)
    except UnknownAdapterError as error:
        raise ModelNotFoundError(
            f"There is no adapter {quote(body.lora_name)}: see GET /v1/adapters.", "lora_name"
        ) from error
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def adapters_of(service: Service) -> AdapterAdministration:
    """Return the adapters of the loaded model.

    Raises:
        ServiceUnavailableError: the model is still loading.
        InvalidRequestError: the server loads no adapters.

    """
    adapters = service.base_model.adapters
    if adapters is None:
        raise InvalidRequestError(NO_ADAPTERS)
    return adapters


def _routing_state(model: LoadedModel, adapter: JsonObject) -> str:
    return model.profiles.state(adapter["version"]) if model.engine.hidden_size else "failed"
