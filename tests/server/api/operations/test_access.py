"""``/v1/access`` with each kind of key."""

import pytest

from server.api.core.access.api_keys import KeyRing, Keys

OPEN, LOCKED = Keys(), Keys(KeyRing(["user"]), KeyRing(["admin"]))
ADMINS_ONLY = Keys(KeyRing([]), KeyRing(["admin"]))


@pytest.mark.parametrize(
    ("keys", "key", "user", "admin"),
    [
        (LOCKED, None, 401, 401),
        (LOCKED, "wrong", 401, 401),
        (LOCKED, "user", None, 403),
        (LOCKED, "admin", None, None),
        (ADMINS_ONLY, None, None, 401),
    ],
)
def test_each_key_is_told_what_it_may_use(fake, ask, keys, key, user, admin):
    fake.service.keys, fake.service.model = keys, None
    response = ask("GET", "/v1/access", headers={} if key is None else {"x-api-key": key})
    assert response.status_code == 200
    found = response.json()
    assert (found["user"]["status"], found["admin"]["status"]) == (user, admin)
    assert (found["user"]["allowed"], found["admin"]["allowed"]) == (user is None, admin is None)


def test_without_keys_another_machine_is_told_why_it_is_no_administrator(fake, ask):
    fake.service.keys = OPEN
    found = ask("GET", "/v1/access", headers={"X-Forwarded-For": "192.0.2.1"}).json()
    assert found["user"] == {"allowed": True, "status": None, "message": None}
    assert found["admin"]["status"] == 403
    assert "--admin-api-key-file" in found["admin"]["message"]
