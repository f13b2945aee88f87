"""The time that a wrong key takes tells nothing: id right or wrong, secret wrong at its begin or its end."""

from __future__ import annotations

import json
import os
import statistics
import time

import pytest

from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.registry.named_keys import digest_of

SAMPLES = 20_000
SECRET = "x" + "s" * 41 + "x"
LONG = bool(os.environ.get("BPBROKER_LONG"))


@pytest.mark.skipif(not LONG, reason="measures 20,000 times; BPBROKER_LONG=1 runs it, on a calm machine")
def test_no_difference_shows_in_20_000_samples() -> None:
    keys = NamedKeys()
    for number in range(100):
        stored = {"sha256": digest_of(f"{number}{SECRET}").hex(), "allow": ["services"]}
        keys.take(f"_keys/key{number:02}", json.dumps(stored).encode())
    kinds = {
        "first byte": f"key07.Y7{SECRET[2:]}",
        "last byte": f"key07.7{SECRET[:-1]}Y",
        "id": f"kex07.7{SECRET}",
    }
    took: dict[str, list[int]] = {kind: [] for kind in kinds}
    now = time.time()
    for _ in range(SAMPLES):
        for kind, text in kinds.items():
            began = time.perf_counter_ns()
            keys.find((text,), now)
            took[kind].append(time.perf_counter_ns() - began)
    medians = {kind: statistics.median(values) for kind, values in took.items()}
    # What is left of a difference must vanish in what the same call takes from one time to the next.
    spread = max(statistics.quantiles(values, n=20)[17] - statistics.median(values) for values in took.values())
    assert max(medians.values()) - min(medians.values()) <= max(spread, 150), (medians, spread)
