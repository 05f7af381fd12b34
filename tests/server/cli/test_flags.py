"""The groups of flags in ``greenroom serve --help``."""

from __future__ import annotations

import argparse

from server.cli.flags import GROUPS, MOST_USED, add_all_flags
from server.settings import ServeSettings, flag_name


def test_every_setting_has_its_flag_in_one_group() -> None:
    parser = argparse.ArgumentParser()
    add_all_flags(parser)
    flags = [
        flag for group in parser._action_groups[2:] for each in group._group_actions for flag in each.option_strings
    ]
    assert sorted(flags) == sorted([*map(flag_name, ServeSettings.model_fields), "--config"])


def test_settings_of_groups_exist() -> None:
    assert {*MOST_USED, *(name for names in GROUPS.values() for name in names)} <= set(ServeSettings.model_fields)


def test_help_begins_with_the_flags_that_are_used_most() -> None:
    parser = argparse.ArgumentParser()
    add_all_flags(parser)
    first = parser._action_groups[2]
    assert (first.title, len(first._group_actions)) == ("most used", 10)
