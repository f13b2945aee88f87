from __future__ import annotations

from bpbroker.actors import restart_pauses
from bpbroker.actors.restart_pauses import Restarts


def test_the_pause_before_a_restart_grows_and_ends() -> None:
    noted = Restarts()
    assert noted.pause_secs(1000.0) == 0
    pauses = []
    now = 1000.0
    for _ in range(restart_pauses.RESTARTS_MAX):
        noted.note(now)
        pauses.append(noted.pause_secs(now))
        now += pauses[-1]
    assert pauses[:-1] == [1, 2, 4, 8]
    assert pauses[-1] == restart_pauses.RESTARTS_WINDOW_SECS - 15
    assert noted.pause_secs(now + 0.1) <= 0
    assert noted.count == restart_pauses.RESTARTS_MAX
