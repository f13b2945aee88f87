"""The configuration: its sections and their settings.

Read ``layers`` first (defaults, and how files and options lie over each other), then ``schema`` (what may stand in
it) and ``paths`` (where it is).

The config store actor owns the settings in force. :data:`data` and
:data:`rlock` are for extensions, which know them as ``bpbroker.config.data``
and ``bpbroker.config.rlock``; the child process that runs one fills them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

data: Mapping[str, Any] = MappingProxyType({})
"""For extensions: the broker's settings, read-only, access keys of other sections removed."""

rlock = threading.RLock()
"""For extensions written for 0.22. Where ``_workers`` lets several processes run calls of one namespace, the child
process puts a lock here that excludes the others, too; else calls run one at a time anyway."""
