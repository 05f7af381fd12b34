"""The dashboard's files over HTTP: their headers, and that no other files are served."""

import re

import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.operations.dashboard import assets

OTHER_HOST = re.compile(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", re.IGNORECASE)
NAMESPACE = "http://www.w3.org/2000/svg"


def test_page_needs_no_key_and_no_model(fake, ask):
    fake.service.model = None
    fake.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    response = ask("GET", "/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Greenroom</title>" in response.text


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(assets()))
def test_every_file_has_its_type_and_a_same_origin_policy(ask, name):
    response = ask("GET", f"/web/{name}")
    types = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
    assert response.headers["content-type"].split(";")[0] == types[name.rpartition(".")[2]]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert not OTHER_HOST.findall(response.text.replace(NAMESPACE, ""))


@pytest.mark.parametrize("name", sorted(assets()))
def test_every_referenced_file_exists(name):
    text = assets()[name].content.decode()
    referenced = re.findall(r'(?:src|href)="/web/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
    assert set(referenced) <= set(assets())


def test_page_has_no_inline_scripts_or_styles():
    page = assets()["index.html"].content.decode()
    assert not re.findall(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page)


def test_a_file_in_the_browsers_cache_is_not_sent_again(ask):
    etag = ask("GET", "/").headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = ask("GET", "/", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert ask("GET", "/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_returns_headers_only(ask):
    get, head = ask("GET", "/web/main.js"), ask("HEAD", "/web/main.js")
    assert head.content == b""
    for name in ("content-length", "content-type", "etag"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["/web/nothing.js", "/web/", "/web", "/web/../app.py", "/web/..%2fapp.py", "/web/%2e%2e/app.py", "/web/..%5capp.py",
     "/web//etc/passwd", "/web/%2fetc%2fpasswd", "/web/main.js%00"],
)  # fmt: skip
def test_other_paths_are_not_found(ask, path):
    response = ask("GET", path)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"
