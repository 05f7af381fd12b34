"""Anthropic's own types of tools: those that the client runs are ordinary ones, all others are left out or refused."""

import pytest
from anthropic.types.beta import (
    BetaMemoryTool20250818CreateCommand,
    BetaMemoryTool20250818DeleteCommand,
    BetaMemoryTool20250818InsertCommand,
    BetaMemoryTool20250818RenameCommand,
    BetaMemoryTool20250818StrReplaceCommand,
    BetaMemoryTool20250818ViewCommand,
)

from tests.chat_formats import FAMILIES

READ = {"name": "read", "input_schema": {"type": "object", "properties": {}}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}

MEMORY_COMMANDS = {
    "view": BetaMemoryTool20250818ViewCommand,
    "create": BetaMemoryTool20250818CreateCommand,
    "str_replace": BetaMemoryTool20250818StrReplaceCommand,
    "insert": BetaMemoryTool20250818InsertCommand,
    "delete": BetaMemoryTool20250818DeleteCommand,
    "rename": BetaMemoryTool20250818RenameCommand,
}


@pytest.fixture
def say(fake, post):
    """Ask a model that writes calls, and has room for the schemas."""
    fake.codec.chat_traits = FAMILIES["hermes"].traits
    messages = [{"role": "user", "content": "a"}]
    return lambda *tools: post("/v1/messages", {"messages": messages, "max_tokens": 9, "tools": tools})


@pytest.fixture
def schema_of(fake, say):
    def of(kind, name):
        response = say({"type": kind, "name": name, "cache_control": {"type": "ephemeral"}})
        assert response.status_code == 200, response.text
        (tool,) = fake.codec.tools[-1]
        assert tool["function"]["name"] == name
        return tool["function"]["parameters"]

    return of


def test_bash_has_a_command(schema_of):
    assert schema_of("bash_20250124", "bash")["properties"].keys() == {"command", "restart"}


@pytest.mark.parametrize(
    ("version", "name", "inserted", "can_undo"),
    [
        (20250124, "str_replace_editor", "new_str", True),
        (20250429, "str_replace_based_edit_tool", "insert_text", False),
        (20250728, "str_replace_based_edit_tool", "insert_text", False),
    ],
)
def test_the_text_editor_has_the_commands_of_its_version(schema_of, version, name, inserted, can_undo):
    schema = schema_of(f"text_editor_{version}", name)
    assert ("undo_edit" in schema["properties"]["command"]["enum"]) is can_undo
    assert inserted in schema["properties"]
    assert schema["required"] == ["command", "path"]


def test_memory_has_the_commands_of_the_package(schema_of):
    schema = schema_of("memory_20250818", "memory")
    assert schema["properties"]["command"]["enum"] == [*MEMORY_COMMANDS]
    fields = {name for command in MEMORY_COMMANDS.values() for name in command.model_fields}
    assert schema["properties"].keys() == fields


@pytest.mark.parametrize("kind", ["bash", 5])
def test_unknown_types_are_refused(say, kind):
    response = say({"type": kind, "name": "a"})
    assert response.status_code == 400
    assert "this server runs no tools itself; got " + repr(kind) in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("web_search_20250305", []),
        *(
            (kind, [READ])
            for kind in ("code_execution_20250825", "computer_20250124", "mcp_toolset", "web_fetch_20250910")
        ),
    ],
)
def test_tools_that_the_request_relies_on_are_refused_by_name(fake, say, kind, others):
    error = say(*others, {"type": kind, "name": "a"}).json()["error"]
    assert error["message"] == (
        f"'tools' can't hold the type '{kind}', because this server runs no tools itself: offer functions, and run "
        "them in the client."
    )
    assert not fake.engine.streams


def test_web_search_is_left_out_beside_functions_and_named(fake, say):
    response = say(SEARCH, READ, SEARCH)
    assert response.status_code == 200, response.text
    assert [tool["function"]["name"] for tool in fake.codec.tools[-1]] == ["read"]
    assert response.headers["x-greenroom-ignored-tools"] == "web_search_20250305"
