"""Command line beats environment beats file; a bad value is named with its origin."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import pytest

from expert_store.policies import POLICIES
from server.cli.flags import add_all_flags
from server.setting_values import AUTO, MAX_TEMPLATE_BYTES, parse_budget
from server.settings import ServeSettings, SettingsError, load_settings


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings({}, {}, None)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.host_expert_memory == AUTO
    assert (settings.max_running_requests, settings.max_queued_requests) == (64, 256)
    assert (settings.log_format, settings.log_prompts) == ("text", False)


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    config = write(tmp_path / "g.toml", 'port = 1\nhost = "file"\nmax-model-len = 7\n')
    environment = {"GREENROOM_PORT": "2", "GREENROOM_HOST": "environment", "PORT": "9"}
    settings = load_settings({"port": "3", "model": None}, environment, config)
    assert (settings.port, settings.host, settings.max_model_len) == (3, "environment", 7)


@pytest.mark.parametrize(
    ("flags", "environment", "toml", "message"),
    [
        ({"port": "99999"}, {}, "", "--port '99999'"),
        ({}, {"GREENROOM_PORT": "x"}, "", "GREENROOM_PORT 'x'"),
        ({}, {}, "port = -1", "port in .*: Input should be greater"),
        ({}, {}, "colour = 1", "colour in .*: there is no such setting$"),
        ({}, {}, "max-model-length = 1", "there is no such setting .did you mean max_model_len"),
        ({}, {}, "port =", "is not TOML"),
        ({"host_expert_memory": "much"}, {}, "", "--host-expert-memory 'much': 'much' is not a size; write it as 6GiB"),
        ({"host_expert_memory": "150%"}, {}, "", "the most is 100%"),
        ({"kv_cache_memory": "10%"}, {}, "", "--kv-cache-memory '10%': '10%' is a percentage"),
        ({"device": "tpu"}, {}, "", "--device 'tpu': write auto, cpu, cuda or cuda:N"),
        ({"model_alias": ["claude-*"]}, {}, "", "--model-alias 'claude-.': write NAME=MODEL, such as claude-"),
        ({"model_alias": ["=tiny"]}, {}, "", "--model-alias '=tiny': write NAME=MODEL"),
        ({"adapter": ["law"]}, {}, "", "--adapter 'law': write NAME=PATH, such as law="),
        ({"load_adapters": "all"}, {}, "", "--load-adapters all needs --adapters-dir"),
        ({"adapter_memory": "50%"}, {}, "", "--adapter-memory '50%': '50%' is a percentage; write a size"),
        ({}, {}, "model-alias = 'a=b'", "model_alias in .*: write a list"),
        (
            {"chat_template": "none.jinja"},
            {},
            "",
            "--chat-template 'none.jinja': No such file or directory; give a file",
        ),
        ({"chat_template_kwargs": "[1]"}, {}, "", r"--chat-template-kwargs '\[1\]': write a JSON object"),
        ({}, {"GREENROOM_CHAT_TEMPLATE_KWARGS": "{a}"}, "", "GREENROOM_CHAT_TEMPLATE_KWARGS '{a}': not JSON: Expect"),
        ({"generation_config": "none"}, {}, "", "--generation-config 'none': there is no generation_config.json in"),
        ({"override_generation_config": '{"top_p": 3}'}, {}, "", "top_p is 3, not a number from 1e-06 to 1"),
        ({"override_generation_config": '{"top_k": 1.5}'}, {}, "", "top_k is 1.5, not a whole number"),
        ({"override_generation_config": '{"max_new_tokens": 0}'}, {}, "", "max_new_tokens is 0, not a number of tok"),
        ({}, {}, "[override-generation-config]\nbest = 1", "there is no default for 'best'; the names are temperature"),
        ({"log_format": "xml"}, {}, "", "--log-format 'xml': Input should be 'text' or 'json'"),
        (
            {},
            {"GREENROOM_PROT": "1"},
            "",
            r"^GREENROOM_PROT: there is no such setting \(did you mean GREENROOM_PORT\?\)$",
        ),
        ({}, {"GREENROOM_API_KEYS": "secret"}, "", r"^GREENROOM_API_KEYS: .* \(did you mean GREENROOM_API_KEY\?\)$"),
        (
            {},
            {"GREENROOM_MAX_NUM_SEQS": "8"},
            "",
            "^GREENROOM_MAX_NUM_SEQS: --max-num-seqs is a flag of vLLM; here it is",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_origin(
    tmp_path: Path, flags: dict[str, str], environment: dict[str, str], toml: str, message: str
) -> None:
    config = write(tmp_path / "g.toml", toml) if toml else None
    with pytest.raises(SettingsError, match=message):
        load_settings(flags, environment, config)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b" \n", "the file is empty"),
        (b"\xff\xfe", "the file is not UTF-8 text"),
        (b"{" * (MAX_TEMPLATE_BYTES + 1), "the file has more than 1 MiB"),
    ],
)
def test_a_file_without_a_template_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "chat.jinja"
    path.write_bytes(data)
    with pytest.raises(SettingsError, match=f"^--chat-template '{path}': {reason}"):
        load_settings({"chat_template": str(path)}, {}, None)


def test_a_chat_template_is_a_file_or_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "chat.jinja", "{{ messages }}\n")
    assert load_settings({"chat_template": str(path)}, {}, None).chat_template == "{{ messages }}\n"
    inline = "{% for m in messages %}" + r"{{ m.content }}\n" + "{% endfor %}"
    expected = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert load_settings({"chat_template": inline}, {}, None).chat_template == expected


def test_json_is_a_table_in_the_file(tmp_path: Path) -> None:
    config = write(tmp_path / "g.toml", "[override-generation-config]\ntemperature = 0.5\n")
    assert load_settings({}, {}, config).override_generation_config == {"temperature": 0.5}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_settings({}, {}, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", 77),
        ("6GiB", 6 << 30),
        ("1.5 MiB", 3 << 19),
        ("512MB", 512_000_000),
        ("1000", 1000),
        ("10b", 10),
        ("1.5TiB", 3 * 2**39),
        ("25%", 250),
        ("0%", 0),
        ("100%", 1000),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_budget(text).resolve(total=1000, auto=77) == expected


@pytest.mark.parametrize("text", ["", "-1", "5 apples", "GiB", "1e9", "NaN", "50 %%", "9" * 400])
def test_other_texts_than_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_budget(text)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:4318",
        "ftp://collector",
        "http://",
        "http://collector:many",
        "http://collector?a=b",
        "http://a:0",
        "http://a b",
    ],
)
def test_other_texts_than_collector_addresses_are_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"--otlp-endpoint: write an address such as http://localhost:4318"):
        load_settings({"otlp_endpoint": url}, {}, None)


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServeSettings().port = 1  # type: ignore[misc]


def test_policies_are_those_of_the_store() -> None:
    """The settings import no other package, so the names are repeated there."""
    assert get_args(ServeSettings.model_fields["cache_policy"].annotation) == POLICIES


def test_a_switch_has_a_value_only_in_environment_and_file(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_all_flags(parser)
    flags = vars(parser.parse_args(["--deterministic", "--port", "1"]))
    assert load_settings(flags, {}, None).deterministic
    assert not load_settings(vars(parser.parse_args([])), {}, None).deterministic
    assert load_settings({}, {"GREENROOM_DETERMINISTIC": "1"}, None).deterministic
    assert load_settings({}, {}, write(tmp_path / "g.toml", "deterministic = true")).deterministic
    with pytest.raises(SettingsError, match="GREENROOM_DETERMINISTIC 'perhaps'"):
        load_settings({}, {"GREENROOM_DETERMINISTIC": "perhaps"}, None)


def parse(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_all_flags(parser)
    return vars(parser.parse_args(words))


def test_a_list_may_be_repeated_flags_separated_text_or_a_toml_list(tmp_path: Path) -> None:
    config = write(tmp_path / "g.toml", 'api-key = ["f1", "f2"]\nallow-origin = ["https://f"]')
    environment = {"GREENROOM_API_KEY": "e1, e2\ne3"}
    flags = parse("--api-key", "c1", "--api-key", "c,2")
    assert load_settings({}, {}, None).user_keys() == []
    assert load_settings({}, {}, config).user_keys() == ["f1", "f2"]
    assert load_settings({}, environment, config).user_keys() == ["e1", "e2", "e3"]
    assert load_settings(flags, environment, config).user_keys() == ["c1", "c,2"]
    assert load_settings(flags, environment, config).allow_origin == ("https://f",)


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    config, other = write(tmp_path / "g.toml", "port = 1"), write(tmp_path / "h.toml", "port = 2")
    environment = {"GREENROOM_CONFIG": str(config)}
    assert load_settings({}, environment, None).port == 1
    assert load_settings({}, environment, other).port == 2
    with pytest.raises(SettingsError, match=r"--config /nowhere\.toml: No such file"):
        load_settings({}, {"GREENROOM_CONFIG": "/nowhere.toml"}, None)


def test_keys_of_a_file_are_added_to_the_others(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys", "k1\r\n\n  k2  \n")
    settings = load_settings(parse("--admin-api-key-file", str(keys), "--admin-api-key", "k0"), {}, None)
    assert settings.admin_keys() == ["k0", "k1", "k2"]
    assert settings.user_keys() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "keys: the file has no key; write one per line"),
        (b"\n \n", "keys: the file has no key; write one per line"),
        (b"two words", "keys: each line must be a key of visible ASCII characters"),
        ("schlüssel".encode(), "keys: each line must be a key of visible ASCII characters"),
        (b"\xff\xfe", "keys: each line must be a key of visible ASCII characters"),
        (None, "keys: No such file or directory"),
    ],
)
def test_a_file_of_keys_that_can_not_be_used_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_bytes(content)
    settings = load_settings({"api_key_file": str(keys)}, {}, None)
    with pytest.raises(SettingsError) as error:
        settings.user_keys()
    assert str(error.value).startswith("--api-key-file ")
    assert str(error.value).endswith(message)


@pytest.mark.parametrize(
    ("flags", "environment", "toml", "place"),
    [
        (["--api-key", "se cret"], {}, "", "--api-key: a key must have"),
        (["--api-key", ""], {}, "", "--api-key: a key must have"),
        (["--admin-api-key", "sécret"], {}, "", "--admin-api-key: a key must have"),
        ([], {"GREENROOM_API_KEY": ""}, "", "GREENROOM_API_KEY: a key must have"),
        ([], {"GREENROOM_ADMIN_API_KEY": "ok,se cret"}, "", "GREENROOM_ADMIN_API_KEY: a key must have"),
        ([], {}, 'api-key = "secret"', "api_key in .*: write a list"),
        ([], {}, 'api-key = ["sec\\nret"]', "api_key in .*: a key must have"),
        ([], {}, 'api-keys = ["secret"]', "api_keys in .*: there is no such setting .did you mean api_key"),
    ],
)
def test_a_key_that_can_not_be_used_is_not_repeated(
    tmp_path: Path, flags: list[str], environment: dict[str, str], toml: str, place: str
) -> None:
    config = write(tmp_path / "g.toml", toml) if toml else None
    with pytest.raises(SettingsError, match=place) as error:
        load_settings(parse(*flags), environment, config)
    assert "ret" not in str(error.value)
    assert error.value.__cause__ is None


def test_settings_show_no_keys() -> None:
    settings = load_settings(parse("--api-key", "sk-1", "--admin-api-key", "sk-2"), {}, None)
    assert "sk-" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    "origin", ["example.org", "https://example.org/", "https://example.org/page", "https://a b", ""]
)
def test_an_origin_is_written_as_browsers_do(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"--allow-origin .*write scheme://host\[:port\]"):
        load_settings(parse("--allow-origin", origin), {}, None)


@pytest.mark.parametrize("host", ["https://example.org", "example.org:8000", "a/b", ""])
def test_an_allowed_host_is_a_name(host: str) -> None:
    with pytest.raises(SettingsError, match=r"--allowed-host .*without scheme and port"):
        load_settings(parse("--allowed-host", host), {}, None)


def test_a_served_name_of_two_lines_is_refused() -> None:
    name = "a\nGreenroom ready: http://127.0.0.1:1 (model b)"
    with pytest.raises(SettingsError, match="write a name in characters that can be printed, on one line"):
        load_settings({"served_model_name": name}, {}, None)


def test_isolation_by_key_needs_keys() -> None:
    message = r"--prefix-cache-isolation separates API keys, and there are none: set --api-key-file"
    with pytest.raises(SettingsError, match=message):
        load_settings({"prefix_cache_isolation": True}, {}, None).check_keys()
    load_settings({"prefix_cache_isolation": True, "api_key": ["key"]}, {}, None).check_keys()
