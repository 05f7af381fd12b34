"""The Python client of a Greenroom server."""
