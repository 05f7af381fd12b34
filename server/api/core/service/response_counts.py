"""Counts of responses that were errors, for the history."""

from dataclasses import dataclass

from server.api.core.errors.api_errors import ClientDisconnectedError, RateLimitError

FIRST_CLIENT_ERROR, FIRST_SERVER_ERROR = 400, 500


@dataclass
class ResponseCounts:
    """POSTs since the start that ended in an error, each in one of the counts. Written by the event loop alone."""

    num_errors: int = 0  # 5xx, and streams that an error ended
    num_rate_limited: int = 0  # 429
    num_client_errors: int = 0  # other 4xx

    def note(self, status: int) -> None:
        """Count a response by its status; one whose client left is no error."""
        if status >= FIRST_SERVER_ERROR:
            self.num_errors += 1
        elif status == RateLimitError.status_code:
            self.num_rate_limited += 1
        elif status >= FIRST_CLIENT_ERROR and status != ClientDisconnectedError.status_code:
            self.num_client_errors += 1
