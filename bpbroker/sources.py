"""Where one run's configuration comes from: the files, in layers, and the overrides of this run.

Lowest to highest: the hardcoded defaults, the global file, the file given with
``--config``, then environment and command-line options. What is saved is
everything but the last, with every default, into the own file (the one given
with ``--config``, else the global one). Entries belong to the own file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpbroker import backups, config, schema, snapshot
from bpbroker.errors import ConfigurationError, DamagedFile


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was read and found usable."""

    saved: Mapping[str, Any]
    """Settings as the own file will hold them: defaults and files, without this run's overrides. Frozen."""
    effective: Mapping[str, Any]
    """Settings in force. Frozen."""
    entries: Mapping[str, bytes]
    """The own file's entries, JSON in UTF-8."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """The files and overrides of one run."""

    own: Path
    """The file that this broker reads, owns and writes."""
    below: Path | None = None
    """The global file, when another one is the own file."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Path to value, such as ``{"api.listen_port": 0}``; never written back."""

    def load(self) -> Loaded:
        """Read, check and lay over each other.

        Raises:
            ConfigurationError: a file cannot be read or used; ``problems`` has every fault of all of them.
        """
        try:
            own_settings, entries = snapshot.read(self.own)
        except DamagedFile as error:
            raise DamagedFile(f"{error}\n{backups.advice(self.own)}") from None
        lower: Mapping[str, Any] = snapshot.read(self.below)[0] if self.below is not None else {}
        problems = [f"{self.own}: {problem}" for problem in schema.problems(own_settings)]
        problems += [f"{self.below}: {problem}" for problem in schema.problems(lower)]
        saved = config.layered(config.DEFAULTS, lower, own_settings) if not problems else {}
        effective = config.override(saved, self.overrides)
        problems += [f"this run's options: {problem}" for problem in schema.problems(effective)]
        if problems:
            listed = "\n  ".join(problems)
            raise ConfigurationError(f"The configuration cannot be used:\n  {listed}", tuple(problems))
        warnings = [f"{self.own}: {warning}" for warning in schema.warnings(own_settings)]
        return Loaded(config.freeze(saved), config.freeze(effective), entries, tuple(warnings))
