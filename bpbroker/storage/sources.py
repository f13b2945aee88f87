"""Where one run's configuration comes from: the files, in layers, and the overrides of this run.

Lowest to highest: the hardcoded defaults, the global file, the file given with
``--config``, then environment and command-line options. What is saved into the
own file (the one given with ``--config``, else the global one) is what that
file holds, and every default that the global file does not set. Nothing of the
global file is copied into another one. Entries belong to the own file alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpbroker.config import layers, schema
from bpbroker.errors import ConfigurationError, DamagedFile, Unavailable
from bpbroker.storage import backups, config_file


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was read and found usable."""

    saved: Mapping[str, Any]
    """Settings as the own file will hold them: defaults, and what it has; nothing of the global file. Frozen."""
    effective: Mapping[str, Any]
    """Settings in force. Frozen."""
    entries: Mapping[str, bytes]
    """The own file's entries, JSON in UTF-8."""
    warnings: tuple[str, ...]
    origin: config_file.Origin | None = None
    """Whose state the own file says it is."""
    lower: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the global file that lie below the own file's. Frozen."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The files and overrides of one run."""

    own: Path
    """The file that this broker reads, owns and writes."""
    below: Path | None = None
    """The global file, when another one is the own file; it need not exist."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Path to value, such as ``{"api.listen_port": 0}``; never written back."""
    is_installed: Callable[[str], bool] = lambda _: False
    """Whether there is an extension module of this name: then a section of that name is not called a typing error."""

    def load(self) -> Loaded:
        """Read and check all files, and lay them over each other.

        Raises:
            ConfigurationError: a file cannot be read or used; ``problems`` has every fault of all of them.
            DamagedFile: the own file is damaged; the message names the newest good backup.
        """
        try:
            own_settings, entries, origin = config_file.read_content(self.own)
        except DamagedFile as error:
            raise DamagedFile(f"{error}\n{backups.advice(self.own)}") from None
        lower, left_out = _lower(self.below)
        warnings = [*left_out, *_lost(self.own, named=self.below is not None)]
        left = _left_behind(own_settings, self.own)
        if left:
            own_settings = layers.override(own_settings, _own_pair(self.own))
            warnings.append(f"{self.own} was moved here from {left}: the certificate beside it is used")
        warnings += [f"{self.own}: {warning}" for warning in schema.warnings(own_settings, self.is_installed)]
        problems = [f"{self.own}: {problem}" for problem in schema.problems(own_settings)]
        problems += [f"{self.below}: {problem}" for problem in schema.problems(lower)]
        saved, effective = ({}, layers.override({}, self.overrides)) if problems else self._laid(lower, own_settings)
        problems += [f"this run's options: {problem}" for problem in schema.problems(effective)]
        if not problems:
            problems += [f"{self.own}: {problem}" for problem in _unreachable(entries, effective)]
        if problems:
            listed = "\n  ".join([*problems, *(f"warning: {warning}" for warning in warnings)])
            raise ConfigurationError(f"The configuration cannot be used:\n  {listed}", tuple(problems))
        return Loaded(
            layers.freeze(saved), layers.freeze(effective), entries, tuple(warnings), origin, layers.freeze(lower)
        )

    def in_force(self, lower: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that are in force with these of the global file and these of the own one."""
        return layers.override(layers.layered(layers.DEFAULTS, lower, saved), self.overrides)

    def _laid(self, lower: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings to save, and those in force.

        A default for which the global file has a value is not saved: at the next start it would hide that value.
        """
        saved = layers.layered(layers.without(layers.DEFAULTS, lower), own)
        return saved, self.in_force(lower, saved)


def _unreachable(entries: Mapping[str, bytes], settings: Mapping[str, Any]) -> Iterator[str]:
    """Say which entries no call can reach, because their names are too long for these settings."""
    limit = schema.option(settings, "api", "max_name_bytes")
    for name in entries:
        if len(name) * 4 > limit and len(name.encode()) > limit:
            yield (
                f"services.{name[:40]}…: the name has {len(name.encode())} bytes, api.max_name_bytes is {limit}:"
                " give the entry a shorter name, or raise the limit"
            )


def _lower(below: Path | None) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return the settings of the global file, and what to warn of.

    The pair that the global file's broker made for itself is left out: a broker
    of its own file makes its own, whose key its user can read.
    """
    if below is None:
        return {}, ()
    try:
        below.open("rb").close()
    except PermissionError:
        # It is another user's, such as a broker's that runs as root.
        return {}, (f"{below} may not be read by this user; its settings are left out",)
    except OSError:
        pass  # not there; or reading it says better what is wrong
    settings = config_file.read(below)[0]
    api = settings.get("api")
    own_pair = {path.partition(".")[2]: value for path, value in _own_pair(below).items()}
    if isinstance(api, dict) and (own_pair.items() <= api.items() or _left_behind(settings, below)):
        settings["api"] = {key: value for key, value in api.items() if key not in own_pair}
    return settings, ()


def _own_pair(own: Path) -> dict[str, str]:
    """Return the settings that name the pair which the broker of a file makes for itself."""
    return dict(zip(("api.ssl_cert", "api.ssl_key"), map(str, layers.own_pair(own)), strict=True))


def _left_behind(settings: Mapping[str, Any], own: Path) -> Path | None:
    """Return the folder from which a configuration file was moved here with the pair that its broker had made.

    The broker writes the full paths of its pair into the file. When nothing is there any more, and a pair lies
    beside the file, that one is meant.
    """
    match settings.get("api"):
        case {"ssl_cert": str(cert), "ssl_key": str(key)}:
            named, beside = (Path(cert), Path(key)), layers.own_pair(own)
        case _:
            return None
    folder = named[0].parent
    same_names = all(one.name == other.name for one, other in zip(named, beside, strict=True))
    if not same_names or folder != named[1].parent or folder == own.parent:
        return None
    gone = not any(map(os.path.lexists, named))
    return folder if gone and all(map(os.path.lexists, beside)) else None


def _lost(own: Path, *, named: bool) -> tuple[str, ...]:
    """Warn when the file is gone: a start would begin with an empty registry."""
    if own.exists():
        return ()
    new = (f"{own} is not there: a start makes it, with new settings and no entries",) if named else ()
    try:
        good = backups.newest_good(own)
    except Unavailable:
        return new
    if good is None:
        return new
    return (f"{own} is not there, so a start makes a new one without entries. {backups.advised(own, good)}",)
