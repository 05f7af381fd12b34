"""``/v1/folders``: the folders that adapters and expert variants can be loaded from."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import AdminDep
from server.engine.interface import AdapterAdministration, VariantAdministration

router = APIRouter(prefix="/v1/folders", tags=["folders"], dependencies=[AdminDep])


# A plain function, which FastAPI runs in a thread: it reads folders.
@router.get("")
def list_folders(service: ServiceDep) -> JSONResponse:
    """List paths as the routes that load take them; null where the server has no folder to load from."""
    model = service.base_model

    def of(weights: AdapterAdministration | VariantAdministration | None) -> list[str] | None:
        return None if weights is None else weights.folders()

    return JSONResponse({"object": "folders", "adapters": of(model.adapters), "variants": of(model.variants)})
