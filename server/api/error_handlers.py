"""Every exception is answered: in OpenAI's form, unless the class of its route has another."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.errors import APIError, api_error
from server.api.request_id import REQUEST_ID_HEADER
from server.api.validation import quote
from server.engine.request import EngineError


def answer_error(request: Request, exc: Exception) -> JSONResponse:
    error = api_error(exc)
    if isinstance(exc, HTTPException):
        error.message = f"{exc.detail}: {request.method} {quote(request.scope['path'])[1:-1]}"
    request.state.error = error
    form = getattr(request.scope.get("route"), "error_body", None)
    body = error.body if form is None else form(error, request.state.request_id)
    return JSONResponse(body, error.status_code, error.headers)


def answer_fault(request: Request, exc: Exception) -> JSONResponse:
    """Answer what nobody foresaw; this runs outside the middleware that adds the request id."""
    response = answer_error(request, exc)
    response.headers[REQUEST_ID_HEADER] = request.state.request_id
    return response


def add_error_handlers(app: FastAPI) -> None:
    for kind in (APIError, EngineError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(Exception, answer_fault)
