"""The options of one run of the broker, and the files that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpbroker.config.paths import Home, find_home
from bpbroker.extensions import modules
from bpbroker.runtime.logs import LogOptions
from bpbroker.storage.sources import Sources


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of ``bpbroker start``."""

    config: Path | None = None
    listen_ip: str | None = None
    listen_port: int | None = None
    ssl_cert: Path | None = None
    ssl_key: Path | None = None
    daemon: bool = False
    pid_file: Path | None = None
    log: LogOptions = field(default_factory=LogOptions)

    def overrides(self) -> dict[str, Any]:
        """Return this run's settings, by path; they are never written back."""
        given = {
            "api.listen_ip": self.listen_ip,
            "api.listen_port": self.listen_port,
            "api.ssl_cert": str(self.ssl_cert) if self.ssl_cert else None,
            "api.ssl_key": str(self.ssl_key) if self.ssl_key else None,
        }
        return {path: value for path, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Plan:
    """Which files one run uses; all paths are absolute."""

    options: RunOptions
    home: Home
    sources: Sources

    @classmethod
    def of(cls, options: RunOptions) -> Plan:
        """Find home and files."""
        home = find_home(for_file=options.config is not None)
        own = options.config.absolute() if options.config else home.config_file
        return cls(options, home, sources_of(home, own, options.overrides()))


def sources_of(home: Home, own: Path, overrides: Mapping[str, Any] | None = None) -> Sources:
    """Return the files that a broker of this home and this own file reads.

    Args:
        home: has the global file, and the extension modules.
        own: the file that the broker writes; absolute.
        overrides: see :attr:`Sources.overrides`.
    """
    below = home.config_file if own != home.config_file else None
    return Sources(own, below, overrides or {}, lambda namespace: modules.find(namespace, home.lib) is not None)
