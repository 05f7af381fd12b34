"""The application for any ASGI server: ``uvicorn --factory server.lifecycle.asgi:create_app``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from server.lifecycle.torch_setup import set_up_torch
from server.setting_variables import MODEL_VARIABLE
from server.settings import ServeSettings, load_settings

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_app(settings: ServeSettings | None = None, model: str | None = None) -> FastAPI:
    """Create the application of a model. Its lifespan loads the model, and frees it at the end.

    ``greenroom serve`` adds the socket, limits of connections, signals and draining, and answers while it loads.

    Args:
        settings: by default those of the environment; ``host`` says where the ASGI server listens.
        model: as on the command line; by default that of ``GREENROOM_MODEL``, else the bundled one.

    Raises:
        SettingsError: a setting can't be used. The lifespan raises it, too, and errors of the model.
    """
    settings = load_settings({}, os.environ, None) if settings is None else settings
    settings.check_keys()
    model = os.environ.get(MODEL_VARIABLE) if model is None else model
    set_up_torch(model)  # before anything imports torch
    from server.lifecycle.application import application_of  # noqa: PLC0415
    from server.lifecycle.hosted_model import HostedModel  # noqa: PLC0415

    hosted = HostedModel(model, settings, settings.host)
    return application_of(hosted.service, hosted.lifespan)
