"""An upgrade from 0.22: the file that it wrote itself (recorded from 0.22 under Python 2.7) is taken over whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import RunningBroker

RECORDED = Path(__file__).with_name("data") / "bpbroker-0.22.json"
OLD: dict[str, Any] = json.loads(RECORDED.read_text())
Make = Callable[..., RunningBroker]


def without_pair(document: dict[str, Any]) -> dict[str, Any]:
    api = {key: value for key, value in document["api"].items() if not key.startswith("ssl_")}
    return {**document, "api": api}


def test_every_entry_key_and_section_is_kept(make_broker: Make) -> None:
    broker = make_broker()
    shutil.copy(RECORDED, broker.config)
    broker.start()
    names = {name for name in OLD["services"] if not name.startswith("_")}
    assert names == {"foo", "foo3", "mit ü", "a b"}
    for name in names:
        answer = broker.request("/services/Get/", name=name, access_key="sesame")
        assert answer.json["data"] == OLD["services"][name]
    assert broker.get("foo").status == 401
    assert broker.request("/services/Register/", name="new", data="x", access_key="sesame").status == 200
    assert broker.stop() == 0
    document = json.loads(broker.config.read_text())
    document["services"].pop("new")
    after = without_pair(document)
    for section, content in OLD.items():
        for key, value in content.items():
            assert after[section][key] == value, (section, key)
    assert after["services"] == OLD["services"]
    assert after["ossec"] == OLD["ossec"]
    assert broker.config.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("there", [False, True])
def test_the_pair_that_everybody_has_is_not_used_any_more(make_broker: Make, tmp_path: Path, there: bool) -> None:
    old = tmp_path / "python2.7" / "bpbroker"
    old.mkdir(parents=True)
    cert, key = old / "dummy_api.crt", old / "dummy_api.key"
    if there:
        cert.write_text("a certificate that everybody has the key of")
        key.write_text("that key")
    broker = make_broker({**OLD, "api": {"ssl_cert": str(cert), "ssl_key": str(key)}}).start()
    document = json.loads(broker.config.read_text())
    assert document["api"]["ssl_cert"] == str(broker.config.with_suffix(".crt"))
    assert document["api"]["ssl_key"] == str(broker.config.with_suffix(".key"))
    assert str(cert) in broker.text  # said in the log
    assert broker.bpbroker("certificate").returncode == 0
    assert broker.bpbroker("reload").returncode == 0


def test_another_pair_that_is_missing_is_an_error(make_broker: Make, tmp_path: Path) -> None:
    broker = make_broker({"api": {"ssl_cert": str(tmp_path / "a.crt"), "ssl_key": str(tmp_path / "a.key")}})
    done = broker.bpbroker("start", "--listen-port", "0")
    assert done.returncode == 78
    assert str(tmp_path / "a.crt") in done.stderr
    assert f"take ssl_cert and ssl_key out of {broker.config}" in done.stderr
    broker.config.write_text('{"api": {}}')
    broker.start()
