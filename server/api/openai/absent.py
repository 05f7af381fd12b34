"""OpenAI's routes that this server does not have."""

from fastapi import APIRouter

from server.api.core.errors.absent_routes import add_absent
from server.api.core.service.guard import UserDep

router = APIRouter(dependencies=[UserDep])

NO_FILES = "this server stores no files; send text, and images as data URLs, within the messages"
NO_AUDIO = "this server has no audio models; use another server for speech"
NO_THREADS = "this server keeps no threads; use /v1/responses or /v1/chat/completions"

add_absent(
    router,
    {
        "/v1/files": NO_FILES,
        "/v1/uploads": NO_FILES,
        "/v1/vector_stores": NO_FILES,
        "/v1/batches": "this server runs no batches; send the requests one by one, and it computes them together",
        "/v1/audio": NO_AUDIO,
        "/v1/realtime": f"{NO_AUDIO}, and /v1/chat/completions with 'stream' for text",
        "/v1/moderations": "this server has no moderation model; ask a model with a 'response_format' of categories",
        "/v1/images": "this server generates no images; models with a vision part read them in /v1/chat/completions",
        "/v1/videos": "this server generates no videos",
        "/v1/fine_tuning": "this server trains no models; train a LoRA adapter with PEFT, and load it here",
        "/v1/assistants": NO_THREADS,
        "/v1/threads": NO_THREADS,
        "/v1/conversations": NO_THREADS,
    },
)
