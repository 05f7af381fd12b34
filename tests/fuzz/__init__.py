"""Fuzzing: timed traces of requests and changes on a real engine, and the parsers of files and of requests."""
