"""Configuration file and journal: put together wrongly by hand, by a copy, by a restored disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from tests.support.running import RunningBroker


def crashed(broker: RunningBroker, name: str) -> None:
    """Register an entry and kill the broker: its journal has a change that its file has not."""
    broker.register(name)
    broker.kill()


def names(broker: RunningBroker) -> set[str]:
    return set(broker.call("/services/List/").json["data"])


def test_an_older_file_beside_a_later_journal(broker: RunningBroker) -> None:
    broker.register("early")
    older = broker.config.read_bytes()
    broker.stop()
    broker.start()
    crashed(broker, "late")
    broker.config.write_bytes(older)
    refused = broker.bpbroker("start", "--listen-port", "0")
    assert refused.returncode == 78
    assert "the file is older" in refused.stderr
    assert broker.config.read_bytes() == older


def test_another_brokers_journal(make_broker: Callable[..., RunningBroker]) -> None:
    one, two = make_broker().start(), make_broker().start()
    crashed(two, "theirs")
    one.stop()
    for path in two.config.parent.glob("*.journal*"):
        shutil.copy(path, one.config.parent)
    refused = one.bpbroker("start", "--listen-port", "0")
    assert refused.returncode == 78
    assert "the journal of registry" in refused.stderr
    done = one.bpbroker("restore", str(one.config))
    assert done.returncode == 0, done.stderr
    assert names(one.start()) == set()


def test_an_edit_beside_a_crashed_journal(broker: RunningBroker) -> None:
    crashed(broker, "late")
    edited = broker.config.read_text().replace('"healthcheck_freq_sec": 10', '"healthcheck_freq_sec": 11')
    broker.config.write_text(edited)
    broker.start()
    broker.await_logged("was edited after its broker had crashed")
    assert names(broker) == {"late"}
    broker.stop()
    assert '"healthcheck_freq_sec": 11' in broker.config.read_text()
    (kept,) = broker.config.parent.parent.rglob("*.edited-*")
    assert kept.read_text() == edited


def test_an_edit_beside_a_clean_stop_goes_on_working(broker: RunningBroker) -> None:
    broker.register("a")
    broker.stop()
    broker.config.write_text(broker.config.read_text().replace('"a": {', '"b": {"x": 1},\n  "c": {'))
    assert names(broker.start()) == {"b", "c"}
