"""Tests of server.model.lora."""
