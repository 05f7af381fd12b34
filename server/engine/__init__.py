"""The engine: schedules requests, runs steps, and returns tokens."""
