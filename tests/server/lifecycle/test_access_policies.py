"""The policy file: what it may say, what is refused with a sentence, and how it is put in force."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from server.api.core.access.access_policies import AccessPolicies
from server.api.core.access.api_keys import KeyRing, Keys, digest_of, key_id
from server.api.core.service.service import Service
from server.engine.interface import AccessPolicy, ForbiddenExperts, UnusableAccessPolicyError
from server.lifecycle.access_policy_file import read_policies
from server.lifecycle.access_policy_setup import AccessPolicySetup
from server.lifecycle.reload_hooks import CHANGED_FILE, SIGHUP, ReloadHooks
from server.settings import SettingsError

SECRET = "sk-do-not-show"
DIGEST = digest_of(SECRET)
KEY = bytes.fromhex(DIGEST.removeprefix("sha256:"))
TENANT = f'[policies.tenant]\nkeys = ["{DIGEST}"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "policies.toml"


def read(file: Path, text: str) -> AccessPolicies:
    file.write_text(text)
    return read_policies(file)


def test_a_policy_belongs_to_its_keys_and_the_default_to_all_others(file: Path) -> None:
    policies = read(file, f'{TENANT}models = ["base", "law-*"]\n[default]\nadapters = [{{name = "safety"}}]\n')
    tenant = policies.of(KEY)
    assert tenant == AccessPolicy("tenant", ("base", "law-*"))
    assert [tenant.allows(name) for name in ("base", "law-1", "code", "base:law")] == [True, True, False, False]
    default = AccessPolicy("default", adapters=(("safety", 1.0),))
    assert (policies.of(None), policies.of(b"another")) == (default, default)
    assert default.allows("anything")


def test_without_a_default_other_keys_have_no_policy(file: Path) -> None:
    policies = read(file, TENANT)
    assert (policies.of(None), policies.of(b"another")) == (None, None)


def test_forbidden_experts_of_all_layers_and_of_one(file: Path) -> None:
    policy = read(file, f'{TENANT}forbidden_experts = {{"3" = [5, 7], all = [2, 9]}}\n').of(KEY)
    assert policy is not None
    assert policy.forbidden_experts.in_layers({1: 4, 3: 10}) == {1: frozenset([2]), 3: frozenset([2, 5, 7, 9])}


@pytest.mark.parametrize(
    ("forbidden", "message"),
    [
        (ForbiddenExperts(frozenset([4])), "no layer has an expert 4"),
        (ForbiddenExperts(by_layer=((1, frozenset([4])),)), "layer 1 has no expert 4, but experts 0 to 3"),
        (ForbiddenExperts(by_layer=((0, frozenset([1])),)), "layer 0 has no experts; the layers with experts are 1, 2"),
    ],
)
def test_experts_that_the_model_lacks_are_named(forbidden: ForbiddenExperts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forbidden.in_layers({1: 4, 2: 4})


REFUSED = {
    f'[policies.tenant]\nkeys = ["{SECRET}"]': "policies.tenant.keys[0] must be the digest of a key",
    "[policies.tenant]\nmodels = ['a']": "policies.tenant.keys is missing",
    "[policies.tenant]\nkeys = []": "policies.tenant.keys: ",
    f'[policies.tenant]\nkeys = ["{DIGEST}", "{DIGEST}"]': "policies.tenant.keys must not hold a value twice",
    f'{TENANT}[policies.b]\nkeys = ["{DIGEST}"]': "policies.b.keys[0] is a key of the policy tenant already",
    f"[policies.default]\nkeys = ['{DIGEST}']": "'default' can't be the name of a policy",
    f"[policies.'a b']\nkeys = ['{DIGEST}']": "'a b' can't be the name of a policy",
    f"{TENANT}model = ['a']": "policies.tenant.model: there is no such field; a policy may have adapters, ",
    "[default]\nkeys = ['a']": "default.keys: there is no such field",
    "[policy.a]\nkeys = ['a']": "policy: there is no such table; write [policies.NAME] or [default]",
    "[default]\nmodels = []": "default.models: ",
    "[default]\nadapters = ['safety']": "default.adapters[0]: ",
    "[default]\nadapters = [{name = 'a', weight = 0}]": "default.adapters[0].weight must not be 0",
    "[default]\nadapters = [{name = 'a', weight = nan}]": "default.adapters[0].weight: ",
    "[default]\nadapters = [{name = 'a'}, {name = 'a'}]": "the policy default names the adapter 'a' twice",
    "[default]\nforbidden_experts = {'-1' = [2]}": "default.forbidden_experts.-1 must be the number of a layer, or all",
    "[default]\nforbidden_experts = {all = [-1]}": "default.forbidden_experts.all[0]: ",
    "[default]\nforbidden_experts = {all = []}": "default.forbidden_experts.all: ",
    "[default": "it is not TOML: ",
    "": "it has no policy; write a table",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_file_that_can_not_be_used_is_refused_by_its_place_and_shows_no_key(text: str, file: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        read(file, text)
    message = str(refused.value)
    assert message.startswith(f"--policy-file {file}: {REFUSED[text]}")
    assert SECRET not in message


def test_a_file_that_is_missing_or_no_text_is_refused(file: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_policies(file)
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="it is not UTF-8"):
        read_policies(file)


class Rig:
    """A service with a policy file, as ``greenroom serve`` sets it up."""

    def __init__(self, file: Path, text: str):
        self.file, self.hooks = file, ReloadHooks()
        self.service = Service("1", keys=Keys(KeyRing([SECRET])))
        file.write_text(text)
        self.setup = AccessPolicySetup(file, self.service, self.hooks)

    def reload(self, text: str, reason: str = SIGHUP) -> str:
        self.file.write_text(text)
        (reload,) = self.hooks._hooks.values()
        return reload(reason)


def audit_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [
        {"action": record.getMessage(), **record.__dict__["fields"]}
        for record in caplog.records
        if record.name == "greenroom.audit"
    ]


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_each_change_of_a_policy_is_a_line_of_the_audit_log(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(file, TENANT)
    assert rig.reload(f"{TENANT}models = ['a']\n[default]\nforbidden_experts = {{all = [1]}}\n") == (
        "2 in force, 2 changed"
    )
    text = "[default]\nforbidden_experts = {all = [1]}\n"
    assert rig.reload(text, CHANGED_FILE) == "1 in force, 1 changed"
    keys = [key_id(KEY)]
    lines = audit_lines(caplog)
    nothing = {"models": "all", "adapters": {}, "forbidden_experts": {}}
    assert [line.pop("outcome") for line in lines] == ["done"] * 4
    assert lines == [
        {"action": "policy.add", "who": "start", "policy": "tenant", "keys": keys, **nothing},
        {"action": "policy.change", "who": "SIGHUP", "policy": "tenant", "models": ["a"]},
        {
            "action": "policy.add",
            "who": "SIGHUP",
            "policy": "default",
            "keys": [],
            **nothing,
            "forbidden_experts": {"all": [1]},
        },
        {"action": "policy.remove", "who": "changed-file", "policy": "tenant"},
    ]


def test_a_bad_file_keeps_the_policies_in_force(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(file, TENANT)
    before = rig.service.policies
    with pytest.raises(SettingsError, match="it is not TOML"):
        rig.reload(f"{TENANT}models = [")
    assert rig.service.policies is before
    line = audit_lines(caplog)[-1]
    assert (line["action"], line["who"], line["outcome"]) == ("policy.reload", "SIGHUP", "failed")


def test_policies_that_the_model_can_not_follow_are_refused_at_the_start_and_at_a_reload(file: Path) -> None:
    def refuse(policies: Iterable[AccessPolicy]) -> None:
        if any(policy.forbidden_experts for policy in policies):
            raise UnusableAccessPolicyError("the policy default: forbidden_experts: its router chooses among groups")

    message = re.escape(f"--policy-file {file}: the policy default: forbidden_experts: its router")
    bad = "[default]\nforbidden_experts = {all = [1]}\n"
    with pytest.raises(SettingsError, match=message):
        Rig(file, bad).setup.use_model(refuse)
    rig = Rig(file, TENANT)
    rig.setup.use_model(refuse)
    before = rig.service.policies
    with pytest.raises(SettingsError, match=message):
        rig.reload(bad)
    assert rig.service.policies is before


def test_keys_that_the_server_does_not_know_are_counted_in_the_log(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Rig(file, f"[policies.tenant]\nkeys = ['{digest_of('another')}', '{DIGEST}']\n")
    assert "keys of the policy tenant that this server does not know: 1" in caplog.messages
