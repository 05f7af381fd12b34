"""ASGI middleware: request ids, host check, rate limits, and reports of finished requests (access log, spans)."""
