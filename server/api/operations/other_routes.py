"""Routes of other servers: a 404 that says what stands for each here."""

from fastapi import APIRouter

from server.api.core.errors.absent_routes import add_absent
from server.api.core.service.guard import UserDep
from server.other_servers import explain_routes

router = APIRouter(dependencies=[UserDep])

# The longest first, as each answers for all paths below it.
REASONS = {
    path: f"it{text.removeprefix(path)}"
    for path, text in sorted(explain_routes().items(), key=lambda each: -len(each[0]))
}

add_absent(router, REASONS)
