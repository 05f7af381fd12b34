"""Handlers that answer every exception, in OpenAI's form unless the class of the route has another form."""

from fastapi import FastAPI, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.core.errors.api_errors import APIError, api_error
from server.api.core.errors.unknown_routes import unknown_method, unknown_path
from server.api.core.errors.validation import quote
from server.api.middleware.request_id import REQUEST_ID_HEADER
from server.engine.interface import EngineError


def answer_error(request: Request, exc: Exception) -> JSONResponse:
    error = api_error(exc)
    if isinstance(exc, HTTPException):
        error.message = _message(request, exc)
    request.state.error = error
    form = getattr(request.scope.get("route"), "error_body", None)
    body = error.body if form is None else form(error, request.state.request_id)
    return JSONResponse(body, error.status_code, error.headers)


def _message(request: Request, exc: HTTPException) -> str:
    """Return the message for what the web framework refuses."""
    match exc.status_code:
        case status.HTTP_404_NOT_FOUND:
            return unknown_path(request, request.app.state.routes)
        case status.HTTP_405_METHOD_NOT_ALLOWED:
            return unknown_method(request, request.app.state.routes)
        case _:
            return f"{exc.detail}: {request.method} {quote(request.scope['path'])[1:-1]}"


def answer_unexpected(request: Request, exc: Exception) -> JSONResponse:
    """Answer an unexpected exception. This runs outside the middleware that adds the request id."""
    response = answer_error(request, exc)
    response.headers[REQUEST_ID_HEADER] = request.state.request_id
    return response


def add_error_handlers(app: FastAPI) -> None:
    for kind in (APIError, EngineError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(Exception, answer_unexpected)
