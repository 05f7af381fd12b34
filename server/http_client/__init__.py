"""Connections to other servers: where they may lead, and what is read of answers."""
