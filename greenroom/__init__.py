"""The public names of Greenroom: its Python client.

The client is imported when one of its names is first used, so that the commands of the server do not load it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client import *  # noqa: F403
    from client import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        client = import_module("client")
        if not hasattr(client, "Client"):
            raise ImportError(f"{client.__file__} hides the package 'client' of Greenroom: rename that file.")
        if name != "__all__" and name not in client.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(client, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("client").__all__})
