"""HEALTHCHECK of the image: exit with status 0 if the server is live. The image has no curl."""

import os
import sys
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

connection = HTTPConnection("127.0.0.1", int(os.environ["GREENROOM_PORT"]), timeout=4)
try:
    connection.request("GET", "/health")
    response = connection.getresponse()
except (OSError, HTTPException) as error:
    sys.exit(f"no response: {error}")
if response.status != HTTPStatus.OK:
    sys.exit(f"{response.status}: {response.read().decode(errors='replace')}")
