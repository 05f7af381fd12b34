"""Variables that look like settings: those of Kubernetes and of other programs break no server."""

from __future__ import annotations

import pytest

from server.setting_variables import unknown_variables
from server.settings import ServeSettings, SettingsError, load_settings

LINKS = {
    "GREENROOM_PORT": "tcp://10.0.0.1:8000",
    "GREENROOM_SERVICE_HOST": "10.0.0.1",
    "GREENROOM_SERVICE_PORT": "8000",
    "GREENROOM_SERVICE_PORT_HTTP": "8000",
    "GREENROOM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "GREENROOM_PORT_8000_TCP_ADDR": "10.0.0.1",
    "GREENROOM_PORT_8000_TCP_PORT": "8000",
    "GREENROOM_PORT_8000_TCP_PROTO": "tcp",
    "GREENROOM_HOST_PORT": "tcp://10.0.0.2:80",  # of a service greenroom-host
    "GREENROOM_HOST_SERVICE_HOST": "10.0.0.2",
    "GREENROOM_HOST_PORT_80_TCP_ADDR": "10.0.0.2",
}
NAMES = ServeSettings.model_fields


def test_links_to_a_service_of_the_same_name_are_no_settings() -> None:
    assert load_settings({}, LINKS, None) == ServeSettings()
    assert unknown_variables(NAMES, LINKS) == []


def test_a_port_that_is_none_is_still_refused() -> None:
    with pytest.raises(SettingsError, match=r"^GREENROOM_PORT 'tcp': "):
        load_settings({}, {"GREENROOM_PORT": "tcp"}, None)


@pytest.mark.parametrize("name", ["CONFIG", "MODEL", "URL", "ROUNDS", "PORT", "LOG_LEVEL"])
def test_variables_that_are_read_are_known(name: str) -> None:
    assert unknown_variables(NAMES, {f"GREENROOM_{name}": "1"}) == []


def test_a_variable_that_resembles_no_setting_is_told_and_breaks_nothing() -> None:
    environment = {"GREENROOM_BUILD_NUMBER": "secret", "GREENROOM_": "1", "GREENROOM_lower": "1"}
    assert load_settings({}, environment, None) == ServeSettings()
    assert unknown_variables(NAMES, environment) == ["GREENROOM_BUILD_NUMBER is no setting of Greenroom"]
