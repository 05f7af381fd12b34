"""Names of models, to which Ollama adds a tag."""

from server.api.core.service.service import Service

LATEST = ":latest"


def tagged(name: str) -> str:
    """Return a name as Ollama lists it: with the tag ``latest`` if it has none."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST


def served_name(service: Service, name: str | None) -> str | None:
    """Return the name by which the server knows a model: as the client wrote it, or without the tag ``latest``."""
    if not name:
        return None
    if not name.endswith(LATEST) or service.find_model(name) is not None:
        return name
    return name.removesuffix(LATEST)
