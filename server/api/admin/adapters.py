"""``/v1/load_lora_adapter``, ``/v1/unload_lora_adapter``, as vLLM has them, and ``/v1/adapters``."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict

from server.api.core.auth import AdminDep
from server.api.core.body import JsonBody
from server.api.core.dependencies import ServiceDep
from server.api.core.errors import InvalidRequestError, ModelNotFoundError
from server.api.core.fields import Text
from server.api.core.service import Service
from server.api.core.validation import quote
from server.engine.interface import AdapterAdministration, UnknownAdapterError

NO_ADAPTERS = "This server loads no adapters: start it with --adapters-dir."

router = APIRouter(prefix="/v1", tags=["adapters"], dependencies=[AdminDep])


class AdapterName(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    lora_name: Text
    lora_int_id: Any = None  # vLLM's number of it


class AdapterPath(AdapterName):
    lora_path: Text
    load_inplace: bool = False


@router.get("/adapters")
def list_adapters(service: ServiceDep) -> JSONResponse:
    return JSONResponse(adapters_of(service).overview())


@router.post("/load_lora_adapter", response_class=PlainTextResponse)
def load_adapter(body: Annotated[AdapterPath, JsonBody(AdapterPath)], service: ServiceDep) -> PlainTextResponse:
    service.unknown_fields.note(body.model_extra or ())
    adapters_of(service).load(body.lora_name, body.lora_path, replace=body.load_inplace)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/unload_lora_adapter", response_class=PlainTextResponse)
def unload_adapter(body: Annotated[AdapterName, JsonBody(AdapterName)], service: ServiceDep) -> PlainTextResponse:
    service.unknown_fields.note(body.model_extra or ())
    try:
        adapters_of(service).unload(body.lora_name)
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
    adapters = service.loaded_model(None).adapters
    if adapters is None:
        raise InvalidRequestError(NO_ADAPTERS)
    return adapters
