"""How much a test tries: all of it where a change has to pass, a part of it at a desk, where waiting costs thoughts."""

from __future__ import annotations

import os
from typing import Final

from tests.support.systems import is_wine

THOROUGH: Final = os.environ.get("BPBROKER_THOROUGH") == "1" or os.environ.get("BPBROKER_LONG") == "1"
"""``.ci/run`` sets the first one; the second is for soaks."""


def examples(count: int) -> int:
    """Return how many of so many examples to try: all, or a quarter; a tenth under Wine, where each takes longer."""
    if is_wine():
        return max(1, count // 10)
    return count if THOROUGH else max(1, count // 4)
