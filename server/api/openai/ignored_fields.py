"""Fields of a request that the server ignores: noted in the log, or refused."""

from server.api.core.bodies.other_samplers import OTHER_SAMPLERS
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.service.service import Service
from server.api.openai.bodies import GenerationBody


def note_ignored(body: GenerationBody, service: Service) -> None:
    """Log the fields of a request that have no effect, each name once.

    Raises:
        InvalidRequestError: one would change what is generated, and the server is told to refuse such requests.

    """
    ignored = body.ignored_fields
    if ignored and service.refuses_other_samplers:
        raise InvalidRequestError(
            f"'{ignored[0]}' can't be used, because this server does not sample so, and --strict-sampling refuses what "
            "it would ignore: leave it out.",
            ignored[0],
        )
    service.unknown_fields.note(name for name in body.model_extra or () if name not in OTHER_SAMPLERS)
    service.unknown_fields.note_known(ignored, "this server does not sample so")
