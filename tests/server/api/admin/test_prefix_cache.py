"""``/reset_prefix_cache``: for administrators."""

from server.api.core.access.api_keys import KeyRing, Keys


def test_the_engine_forgets_its_prefixes(fake, ask):
    response = ask("POST", "/reset_prefix_cache")
    assert (response.status_code, response.content, fake.engine.num_resets) == (200, b"", 1)


def test_users_may_not_reset_it(fake, ask):
    fake.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    assert ask("POST", "/reset_prefix_cache", headers={"Authorization": "Bearer user"}).status_code == 403
    assert fake.engine.num_resets == 0
