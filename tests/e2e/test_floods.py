"""Clients that make the broker work hard for nothing harm nobody else; none of them needs a key.

With ``BPBROKER_LONG=1`` the attacks go on for half a minute.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import tls_flood
from tests.support.witness import LONG, Attacked, Witness

logger = logging.getLogger(__name__)

SECS = 30.0 if LONG else 4.0


@pytest.mark.skipif(tls_flood.library() is None, reason="there is no libssl that could be called")
def test_key_updates_without_end(attack: Callable[..., Attacked]) -> None:
    attacked = attack()
    flooder = [sys.executable, "-m", "tests.support.tls_flood", str(attacked.broker.port), str(SECS)]
    with ExitStack() as stack:
        flooders = [
            stack.enter_context(
                subprocess.Popen(flooder, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
            )
            for _ in range(4)
        ]
        with Witness(attacked.broker) as witness:
            time.sleep(SECS)
        sent = [int(each.communicate(timeout=60)[0]) for each in flooders]
    logger.info("KeyUpdates %s: %s", sent, witness.figures)
    assert min(sent) > 100
    assert witness.figures.slowest_secs < 2.0  # while the flood goes on, not after it
