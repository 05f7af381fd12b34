"""``/v1/experts/load`` and ``/v1/experts/variants``: expert variants that come and go while the server runs."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from server.api.core.access.audit import audited
from server.api.core.bodies.fields import Text
from server.api.core.errors.api_errors import InvalidRequestError, ModelNotFoundError
from server.api.core.errors.validation import quote
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import AdminDep
from server.api.core.service.service import Service
from server.engine.interface import UnknownVariantError, VariantAdministration

NO_VARIANTS = "This server loads no expert weights: start it with --experts-dir."
NONE: dict[str, Any] = {"folder": None, "greenroom_base": None, "data": []}  # the list of such a server

NO_SUCH_VARIANT = "There is no expert variant {}: see GET /v1/experts/variants."
# The routes are plain functions, which FastAPI runs in threads: they read files.
router = APIRouter(prefix="/v1/experts", tags=["experts"], dependencies=[AdminDep])


class VariantBody(BaseModel):
    """A variant to load."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: Text
    path: Text


@router.post("/load")
def load_variant(body: Annotated[VariantBody, JsonBody(VariantBody)], service: ServiceDep) -> JSONResponse:
    service.unknown_fields.note(body.model_extra or ())
    variants = variants_of(service)
    with audited("variant.load", variant=body.name, path=body.path) as line:
        variant = variants.load(body.name, body.path)
        if variant["replaced"]:
            line["action"] = "variant.replace"
    return JSONResponse(listed(service, variant))


@router.get("/variants")
def list_variants(service: ServiceDep) -> JSONResponse:
    variants = service.loaded_model(None).variants
    overview = NONE if variants is None else variants.overview()
    data = [listed(service, variant) for variant in overview["data"]]
    return JSONResponse({"object": "list", **overview, "data": data})


@router.get("/variants/{name}")
def get_variant(name: str, service: ServiceDep) -> JSONResponse:
    variants = service.loaded_model(None).variants
    data = [] if variants is None else variants.overview()["data"]
    found = next((variant for variant in data if variant["name"] == name), None)
    if found is None:
        raise ModelNotFoundError(NO_SUCH_VARIANT.format(quote(name)), "name")
    return JSONResponse(listed(service, found))


@router.delete("/variants/{name}")
def unload_variant(name: str, service: ServiceDep) -> JSONResponse:
    variants = variants_of(service)
    try:
        with audited("variant.unload", variant=name):
            variants.unload(name)
    except UnknownVariantError as error:
        raise ModelNotFoundError(NO_SUCH_VARIANT.format(quote(name)), "name") from error
    return JSONResponse({"object": "experts.variant.deleted", "name": name, "deleted": True})


def listed(service: Service, variant: dict[str, Any]) -> dict[str, Any]:
    """Return a variant with the name of the model that it is served as."""
    model = f"{service.base_model.name}:{variant['name']}"
    return {"object": "experts.variant", "model": model, **variant}


def variants_of(service: Service) -> VariantAdministration:
    """Return the expert variants of the loaded model.

    Raises:
        ServiceUnavailableError: the model is still loading.
        InvalidRequestError: the server loads no variants.

    """
    variants = service.base_model.variants
    if variants is None:
        raise InvalidRequestError(NO_VARIANTS)
    return variants
