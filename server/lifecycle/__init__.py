"""Life of the server process: torch setup, listening socket, access rules, connections, draining, shutdown."""
