"""``/metrics``."""

import pytest

from server.api.core.access.access_policies import AccessPolicies
from server.api.core.access.api_keys import KeyRing, Keys
from server.engine.interface import AccessPolicy

ADMIN, USER = "admin-key", "user-key"


def test_metrics_are_prometheus_text(fake, ask):
    fake.service.metrics = lambda: b"greenroom_num_requests_running 0\n"
    response = ask("GET", "/metrics")
    assert response.content == b"greenroom_num_requests_running 0\n"
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    ("has_policies", "key", "is_hidden"),
    [(False, None, False), (True, None, True), (True, USER, True), (True, ADMIN, False)],
)
def test_with_policies_names_are_for_administrators(fake, ask, has_policies, key, is_hidden):
    fake.service.keys = Keys(KeyRing([USER]), KeyRing([ADMIN]))
    fake.service.policies = AccessPolicies({"default": AccessPolicy("default")} if has_policies else {})
    fake.service.metrics = lambda *, hides_names=False: str(hides_names).encode()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    assert ask("GET", "/metrics", headers=headers).text == str(is_hidden)
