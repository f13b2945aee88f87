"""What one run of the broker was told, and which files it uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpbroker.config.paths import Home, find_home
from bpbroker.runtime.logs import LogOptions
from bpbroker.runtime.sources import Sources


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``bpbroker start`` was told."""

    config: Path | None = None
    listen_ip: str | None = None
    listen_port: int | None = None
    ssl_cert: Path | None = None
    ssl_key: Path | None = None
    daemon: bool = False
    pid_file: Path | None = None
    log: LogOptions = field(default_factory=LogOptions)

    def overrides(self) -> dict[str, Any]:
        """Give this run's settings, by path; they are never written back."""
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
        home = find_home()
        own = options.config.absolute() if options.config else home.config_file
        below = home.config_file if own != home.config_file else None
        return cls(options, home, Sources(own, below, options.overrides(), home.lib))
