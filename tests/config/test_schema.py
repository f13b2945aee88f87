from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpbroker.config import layers, schema


def test_the_defaults_have_no_fault() -> None:
    assert list(schema.problems(layers.DEFAULTS)) == []
    assert list(schema.warnings(layers.DEFAULTS)) == []


def test_every_default_of_the_schema_passes_its_own_check() -> None:
    for section, keys in {**schema.KNOWN, "extension": schema.EXTENSION}.items():
        for name, key in keys.items():
            if name not in ("ssl_cert", "ssl_key"):  # their default is DEFAULTS'
                assert key.check(key.default) is None, f"{section}.{name}"
            assert key.help


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"api": {"listen_port": 99999}}, "api.listen_port is 99999: must be a whole number from 0 to 65535"),
        ({"api": {"listen_port": "20443"}}, 'api.listen_port is "20443": must be a whole number'),
        ({"api": {"listen_port": True}}, "must be a whole number"),
        ({"api": []}, "api is []: a section must be an object"),
        ({"_config": {"backup_retain_n": 0}}, "_config.backup_retain_n is 0"),
        ({"_global": {"discovery": "authentcated"}}, "did you mean authenticated?"),
        ({"services": {"foo": "text"}}, 'services.foo is "text": an entry must be an object'),
        ({"_ui": {"enabled": "no"}}, '_ui.enabled is "no": must be true or false'),
        ({"_ui": {"read_only": False}}, "_ui.read_only is false: must be true"),
        ({"_ui": False}, "_ui is false: a section must be an object"),
        ({"ossec": {"_timeout_secs": -1}}, "ossec._timeout_secs is -1"),
        ({"ossec": {"_env": {"A": 1}}}, "must be an object of texts"),
    ],
)
def test_faults_name_path_value_and_what_it_must_be(document: dict[str, Any], says: str) -> None:
    (problem,) = schema.problems(document)
    assert says in problem


@pytest.mark.parametrize("key", [0, {}, [], ["a", 1], ["a", ""], ["a"] * 5, None, True, "x" * 1025])
def test_an_access_key_that_is_no_key_is_refused_and_not_shown(key: Any) -> None:
    for section in ("services", "ping", "ossec"):
        (problem,) = schema.problems({section: {"_access_key": key}})
        assert problem.startswith(f"{section}._access_key: must")
        assert "xxxx" not in problem


@pytest.mark.parametrize("key", ["", "k", ["k"], ["a", "b", "c", "d"], ("a", "b")])
def test_an_access_key_is_text_or_up_to_four_texts(key: Any) -> None:
    assert list(schema.problems({"services": {"_access_key": key}})) == []


def test_only_what_a_running_broker_cannot_change_is_left_to_its_next_start() -> None:
    before = layers.layered(layers.DEFAULTS, {"_registry": {"max_sessions": 5, "store": "embedded"}})
    after = layers.layered(
        before, {"api": {"workers": 4, "listen_port": 1, "max_waiting": 9}, "_registry": {"max_sessions": 6}}
    )
    assert schema.at_next_start(before, after) == ["api.listen_port", "api.workers"]
    assert schema.at_next_start(before, layers.layered(before, {"_registry": {"prefix": "/x"}})) == ["_registry.prefix"]
    assert schema.at_next_start(before, before) == []


def test_all_faults_are_told_at_once() -> None:
    assert len(list(schema.problems({"api": {"listen_port": -1, "workers": 0}, "ping": 1}))) == 3


def test_unknown_keys_are_kept_and_likely_typing_errors_are_warned_of() -> None:
    document = {"api": {"listen_prot": 1, "mine": 2}, "_confg": {}, "_mine": {}, "ossec": {"dir": "/x"}}
    assert list(schema.problems(document)) == []
    assert list(schema.warnings(document)) == [
        "api.listen_prot is not known; did you mean api.listen_port?",
        "_confg is not known; did you mean _config?",
    ]


def test_a_section_that_is_no_extension_may_be_a_known_one_with_a_typing_error() -> None:
    document: dict[str, Any] = {"servces": {"_access_key": "k"}, "pings": {}, "pinger": {}, "ossec": {}}
    assert list(schema.warnings(document, lambda name: name == "pinger")) == [
        "servces is not known; did you mean services?",
        "pings is not known; did you mean ping?",
    ]


def test_option_gives_the_setting_or_its_default() -> None:
    assert schema.option({"api": {"workers": 7}}, "api", "workers") == 7
    assert schema.option({}, "api", "max_headers") == 100
    assert schema.option({"ossec": {}}, "ossec", "_timeout_secs") == 30


def test_the_registry_on_etcd_needs_what_goes_together() -> None:
    faults = "\n".join(
        schema.problems(
            {
                "_registry": {"store": "etcd", "user": "broker", "client_key": "/key", "prefix": "/"},
                "api": {"max_data_bytes": 4 * 1024 * 1024},
            }
        )
    )
    for part in ("_registry.endpoints is missing", "_registry.password is missing", "_registry.client_cert is missing",
                 '_registry.prefix is "/"', "api.max_data_bytes is 4194304: with the store etcd"):  # fmt: skip
        assert part in faults
    assert len(faults.splitlines()) == 5


@pytest.mark.parametrize(
    "endpoint",
    ["10.0.0.5:2379", "ftp://h:1", "https://", "https://h:99999", "https://h/path", "https://u:p@h:1", 7, ""],
)
def test_an_endpoint_is_an_address(endpoint: object) -> None:
    assert list(schema.problems({"_registry": {"endpoints": [endpoint]}}))


def test_a_password_is_never_shown_and_clear_text_is_warned_of() -> None:
    section = {"store": "etcd", "endpoints": ["http://10.0.0.5:2379"], "user": "u", "password": 7}
    faults = list(schema.problems({"_registry": section}))
    assert faults == ["_registry.password: must be text"]
    assert any("http://" in warning for warning in schema.warnings({"_registry": section}))
    loopback = {"_registry": {**section, "endpoints": ["http://127.0.0.1:2379", "https://10.0.0.5:2379"]}}
    assert not list(schema.warnings(loopback))


@pytest.mark.parametrize("user", ["", "u", "u%40x"])
def test_a_password_in_an_endpoint_is_refused_and_not_shown(user: str) -> None:
    (fault,) = schema.problems({"_registry": {"endpoints": [f"https://{user}:canary@h:2379"]}})
    assert "canary" not in fault
    assert "@h:2379" in fault


@pytest.mark.parametrize("key", [" a", "a ", "a\tb", "a\nb", "a\u00a0b", "a\u200bb", "\ufeffa", "a\u2028b", "\ud800"])
def test_a_key_that_no_client_can_send_is_refused_without_showing_it(key: str) -> None:
    (problem,) = schema.problems({"services": {"_access_key": key}})
    assert "no client could send it" in problem
    assert repr(key) not in problem


@pytest.mark.parametrize("key", ["a", "a b", "ä", "密钥"])
def test_a_key_that_can_be_sent(key: str) -> None:
    assert list(schema.problems({"services": {"_access_key": key}})) == []


def test_an_extension_does_not_see_the_secrets_of_other_sections() -> None:
    settings = {
        "api": {"ssl_key": "/etc/b.key", "listen_port": 1},
        "services": {"_access_key": "hush"},
        "_discovery": {"secret": "hush"},
        "_keys": {"ci": {"sha256": "hush"}},
        "_registry": {"password": "hush", "user": "u", "client_key": "/etc/c.key"},
        "ossec": {"_access_key": "o", "_env": {"A": "mine"}, "password": "mine"},
        "mail": {
            "_access_key": "hush", "_env": {"A": "hush"}, "host": "h", "api_key": "hush", "PASSWORD": "hush",
            "smtp": [{"user": "u", "passwd": "hush", "auth_token": "hush"}],
            "url": "https://u:hush@h/", "keyboard": "de",
        },
    }  # fmt: skip
    seen = schema.for_extension(layers.freeze(settings), "ossec")
    assert seen == {
        "api": {"ssl_key": "/etc/b.key", "listen_port": 1},
        "services": {},
        "_registry": {"user": "u", "client_key": "/etc/c.key"},
        "ossec": {"_access_key": "o", "_env": {"A": "mine"}, "password": "mine"},
        "mail": {"host": "h", "smtp": [{"user": "u"}], "url": "https://…@h/", "keyboard": "de"},
    }


def test_every_secret_is_known_as_one() -> None:
    """A new setting whose name sounds like a secret has to say whether it is one."""
    for section, keys in {**schema.KNOWN, "extension": schema.EXTENSION}.items():
        for name, key in keys.items():
            if schema._SECRET_NAME.search(name) and not name.startswith(("ssl_", "client_")):
                assert key.secret or name == "wrong_keys_per_minute", f"{section}.{name}"
    assert list(schema.problems({"_discovery": {"secret": "hush"}})) == [
        "_discovery.secret: must be 64 lower-case hexadecimal digits, such as `openssl rand -hex 32` prints"
    ]


@pytest.mark.parametrize("where", ["same", "off", str(Path("/var/log/bpbroker/access.log").absolute())])
def test_where_the_access_log_may_go(where: str) -> None:
    assert list(schema.problems({"api": {"access_log": where}})) == []


@pytest.mark.parametrize("where", ["of", "", "access.log", None, True, "/a\0"])
def test_where_the_access_log_may_not_go(where: object) -> None:
    (problem,) = schema.problems({"api": {"access_log": where}})
    assert problem.endswith("must be same (as the log), off, or the path of a file from the root on")
