"""The settings of a command that looks at a model, which is named on the command line."""

from __future__ import annotations

import argparse
import os

from server.cli.exit_status import FAILURE, WRONG_USAGE, fail
from server.model.checkpoint.local_files import check_model
from server.model.errors import ModelError
from server.settings import ServeSettings, SettingsError, load_settings


def load_model_settings(arguments: argparse.Namespace) -> ServeSettings | int:
    """Return the settings; if they or the model's name are wrong, print why and return the exit status."""
    try:
        settings = load_settings(vars(arguments), os.environ, arguments.config)
        check_model(arguments.model)
    except SettingsError as error:
        return fail(error, WRONG_USAGE)
    except ModelError as error:
        return fail(error, FAILURE)
    return settings
