"""Requests to other servers: what is read of their answers, where they may lead, and what is told of them."""
