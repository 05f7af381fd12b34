"""The state of the server, and what every route takes from it: callers, bodies, its description."""
