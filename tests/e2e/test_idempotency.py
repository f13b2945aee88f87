"""A repeated call with one Idempotency-Key runs once, across a restart too."""

from __future__ import annotations

from collections.abc import Callable

from tests.running import RunningBroker

MODULE = """
from pathlib import Path
RUNS = Path(__file__).with_name("runs")
def Once(rh):
    with RUNS.open("a") as file:
        file.write("x")
    rh.data = {"runs": RUNS.stat().st_size}
"""


def test_a_repeat_gets_the_stored_answer(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"once": {}})
    (broker.lib / "once.py").write_text(MODULE)
    broker.start()
    key = {"Idempotency-Key": "install-42"}
    first = broker.call("/once/Once", key, data="a")
    assert first.json == {"runs": 1}
    assert broker.call("/once/Once", key, data="a").json == {"runs": 1}
    broker.restart()
    assert broker.call("/once/Once", key, data="a").json == {"runs": 1}
    assert broker.call("/once/Once", {"Idempotency-Key": "install-43"}, data="a").json == {"runs": 2}
    assert broker.call("/once/Once", data="a").json == {"runs": 3}
    assert broker.config.with_name("bpbroker.json.answers").stat().st_mode & 0o777 == 0o600
