"""The dashboard: the page at ``/``, and its files under ``/web``."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Request, status
from fastapi.responses import Response

PAGE = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",  # revalidate each time: modules of two versions do not fit together
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """A file of the dashboard, and its response headers."""

    content: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """Read all files of the dashboard once. A name that is not a key here is never looked up on disk."""
    found = {}
    for entry in files("server").joinpath("web").iterdir():
        media_type = MEDIA_TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if media_type is not None:
            content = entry.read_bytes()
            found[entry.name] = Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


# Plain functions, which FastAPI runs in threads: the first call reads files.
@router.api_route("/", methods=["GET", "HEAD"])
def dashboard(request: Request) -> Response:
    return answer(request, PAGE)


@router.api_route("/web/{name}", methods=["GET", "HEAD"])
def asset(request: Request, name: str) -> Response:
    return answer(request, name)


def answer(request: Request, name: str) -> Response:
    """Return the file, or 304 if the client has the same version.

    Raises:
        HTTPException: there is no such file.
    """
    found = assets().get(name)
    if found is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "The dashboard has no such file.")
    headers = HEADERS | {"ETag": found.etag}
    if is_known(request.headers.get("if-none-match", ""), found.etag):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def is_known(if_none_match: str, etag: str) -> bool:
    """Return True if ``If-None-Match`` contains the tag, weak or not (RFC 9110, 13.1.2)."""
    return any(known.strip().removeprefix("W/") in (etag, "*") for known in if_none_match.split(","))
