"""Addresses of models on web servers."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from server.redaction import redact

WEB = ("http://", "https://")
STORAGE = ("s3://", "gs://", "az://")


def is_address(model: str) -> bool:
    """Return True if a model of the command line is on a web server, or in object storage."""
    return model.startswith((*WEB, *STORAGE))


def is_storage(address: str) -> bool:
    """Return True if an address is one of object storage."""
    return address.startswith(STORAGE)


def without_secrets(address: str) -> str:
    """Return an address without user, password, query and fragment, for messages."""
    try:
        parts = urlsplit(address)
    except ValueError:  # it is no address
        return redact(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
