"""Server-sent events whose data repeats their name, as Anthropic's and those of OpenAI's responses."""

import json


def events_of(response):
    """Return the data of each event, which contains its name."""
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events
