"""Shared by all dialects of the API: request bodies, generations, replies, authentication, limits, errors."""
