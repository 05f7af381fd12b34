"""Ignored names are logged once, and cannot flood the log."""

import logging

from server.api.core.bodies.ignored_names import MAX_NAMES, IgnoredNames


def test_each_name_is_logged_once(caplog):
    fields = IgnoredNames("Ignoring %s.")
    fields.note(["colour", "shade"])
    fields.note(["colour"])
    assert [record.args for record in caplog.records] == [("'colour'",), ("'shade'",)]


def test_names_are_limited_in_number(caplog):
    fields = IgnoredNames("Ignoring %s.")
    fields.note(f"field{number}" for number in range(2 * MAX_NAMES))
    assert len(caplog.records) == MAX_NAMES


def test_names_are_short_and_on_one_line(caplog):
    IgnoredNames("Ignoring %s.").note(["a\nb\ud800" + "c" * 10_000])
    message = caplog.records[0].getMessage()
    assert len(message) < 120
    assert "\n" not in message
    assert message.isascii()


def test_request_with_unknown_field_is_answered(caplog, complete):
    with caplog.at_level(logging.WARNING, "server.api"):
        assert complete(colour="green").status_code == 200
    assert "'colour'" in caplog.text
