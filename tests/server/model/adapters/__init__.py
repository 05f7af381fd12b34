"""Tests of server.model.adapters."""
