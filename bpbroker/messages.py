"""Every request and reply that the broker's parts exchange.

All of them are frozen: a reply is not copied on its way between threads, so
no one may be able to change it. What a message's reply is stands in its
docstring.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from bpbroker.record import Record

T = TypeVar("T")

Settings = Mapping[str, Any]
"""The settings in force: section name to section, read-only at every depth (see :mod:`bpbroker.config.layers`)."""


class Address(Protocol):
    """Where to send messages for one actor, by name; the actor behind it may be replaced."""

    @property
    def name(self) -> str:
        """The actor's name, such as ``registry`` or ``extension ossec``."""

    def tell(self, message: Any) -> None:
        """Send news that has no reply; never raises, a dead actor simply does not hear it."""

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:
        """Send a request whose reply, or error, comes with the future.

        An actor that takes the message up later than ``timeout_secs`` from now
        drops it, so that a caller that stopped waiting knows that nothing was done.

        Raises:
            Overloaded: the actor's inbox is full.
            Unavailable: the actor is not running.
        """

    def reply_now(self, message: Any) -> Any:
        """Return the reply to a request if it is known without the actor's turn; None if it has to be asked."""


def settle(reply: Future[T], value: T) -> None:
    """Set the value of ``reply``, unless it has one or was cancelled."""
    try:
        reply.set_result(value)
    except InvalidStateError:
        pass


def fail(reply: Future[Any], error: BaseException) -> None:
    """Set ``reply`` to an error, unless it has an outcome or was cancelled."""
    try:
        reply.set_exception(error)
    except InvalidStateError:
        pass


# --- every actor ---


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Reply: :class:`Pong`."""


@dataclass(frozen=True, slots=True)
class Pong:
    """An actor's own word on how it is."""

    ok: bool = True
    detail: str = ""
    """Why it is not well, one line, nothing secret."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and states worth showing in health, all of them JSON values."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers, histograms and mappings of numbers for metrics alone."""


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """News from the config store: these settings are in force now.

    Reply, from an extension that is asked: str, why its module cannot be used; empty if it is in use. It comes when
    that is known, within the time that an import may take.
    """

    settings: Settings


# --- registry ---


@dataclass(frozen=True, slots=True)
class Condition:
    """What a write expects to find; with all fields unset it expects nothing in particular."""

    match: tuple[str, ...] | None = None
    """``If-Match``: the entry's tag must be one of these; ``("*",)`` is any existing entry."""
    none_match: tuple[str, ...] | None = None
    """``If-None-Match``: the entry's tag must be none of these; ``("*",)`` is no entry at all."""
    lock: tuple[str, int] | None = None
    """Name of a lock and the token of a place that must hold it."""


ALWAYS = Condition()


@dataclass(frozen=True, slots=True)
class Register:
    """Create an entry. Reply: its :class:`Record`. Errors: AlreadyExists, PreconditionFailed, Unavailable."""

    name: str
    data: Mapping[str, Any]
    source: str
    """The requesting address as text; becomes ``last_write_ip``."""
    condition: Condition = ALWAYS
    session: str | None = None
    """Id of the session with which the entry is to end; empty: with none; None: as it was."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Create or overwrite an entry. Reply: its :class:`Record`. Errors: PreconditionFailed, Unavailable."""

    name: str
    data: Mapping[str, Any]
    source: str
    condition: Condition = ALWAYS
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """Merge into an entry, creating it if absent. Reply: its :class:`Record`. Errors: Replace's, NotFound, TooLarge."""

    name: str
    data: Mapping[str, Any]
    source: str
    condition: Condition = ALWAYS
    session: str | None = None
    unset: tuple[str, ...] = ()
    """Keys to remove first, or paths such as ``a.b``; with these alone an entry must be there (NotFound)."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """There is no such entry any more."""

    revision: int = 0
    """Of the deletion; 0 if there was none."""

    def at(self, revision: int) -> Deleted:
        """Return it as it is when its commit is durable at a revision."""
        return Deleted(revision + self.revision) if self.revision else self


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an entry, absent or not. Reply: :class:`Deleted`. Errors: PreconditionFailed, Unavailable."""

    name: str
    condition: Condition = ALWAYS


WAIT_MAX_SECS = 600.0
"""The longest that one request, of a client or of an extension, may wait for an entry."""


@dataclass(frozen=True, slots=True)
class Get:
    """Read an entry. Reply: its :class:`Record`. Errors: NotFound, Overloaded (too many wait already).

    With ``wait_secs`` the reply comes when the entry exists and its tag is not
    ``unless_etag``, or when the time is over: then NotFound if it does not
    exist, else the unchanged record.
    """

    name: str
    wait_secs: float = 0.0
    unless_etag: str | None = None
    local: bool = False
    """Whether what this broker knows is enough: a shared store is not asked, and the record has its age."""
    client: str = field(default="", compare=False)
    """For whom a waiting read counts, such as the requesting address; empty for none in particular."""


@dataclass(frozen=True, slots=True)
class List:
    """Read all entries whose name begins with ``prefix``. Reply: a tuple of :class:`Record`, sorted by name.

    With ``wait_secs`` the reply comes when there are ``at_least`` of them, or
    when the time is over with those there are. When ``local``, the reply is :class:`Known`.
    """

    prefix: str = ""
    at_least: int = 0
    wait_secs: float = 0.0
    local: bool = False
    """As for :class:`Get`."""
    client: str = field(default="", compare=False)
    """For whom a waiting read counts, such as the requesting address; empty for none in particular."""
    where: tuple[tuple[str, str], ...] = ()
    """Fields and their values, as text, that an entry must have to count and to be in the reply."""
    fail_where: tuple[tuple[str, str], ...] = ()
    """As ``where``; the first entry that matches one of these ends the wait."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a broker knows of several entries without asking a store."""

    records: tuple[Record, ...]
    age_secs: float
    """How long ago this was surely so."""


@dataclass(frozen=True, slots=True)
class Exists:
    """Reply: the id of the registry if it holds this name durably, else empty.

    Brokers that share one registry give the same id. A broker that is cut off
    from a shared registry gives none, so that clients find one that is not.
    """

    name: str


@dataclass(frozen=True, slots=True)
class ChangeKey:
    """Change a named access key. Reply: its :class:`Record`.

    Errors: those of :func:`bpbroker.registry.named_keys.changed`, Unavailable.
    """

    name: str
    """As in :func:`bpbroker.registry.named_keys.stored_name`."""
    kind: Literal["add", "rotate", "revoke", "count", "note"]
    given: Mapping[str, Any] = field(default_factory=dict)
    """What the change brings."""
    condition: Condition = ALWAYS


@dataclass(frozen=True, slots=True)
class ShareSecret:
    """Have the registry keep a discovery secret for all its brokers. Reply: its :class:`Record`, which has the secret.

    Errors: BadRequest, Unavailable.
    """

    secret: str = field(repr=False)
    """64 hexadecimal digits."""
    renew: bool = False
    """Whether it takes the place of one that is there; else that one stays."""
    name: str = "_discovery/secret"
    condition: Condition = ALWAYS


@dataclass(frozen=True, slots=True)
class ListKeys:
    """Read all named access keys. Reply: a tuple of :class:`Record`, sorted by name."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Reply: :class:`SnapshotTaken`, a complete committed state."""


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """All entries at one moment."""

    entries: Mapping[str, bytes]
    """Name to record in its stored form, the registry's own records too; this mapping is the receiver's own."""
    sequence: int
    """The highest revision of a change that it contains; grows with every commit."""
    commits: int = 0
    """How many commits there were since the registry was opened."""


@dataclass(frozen=True, slots=True)
class SnapshotSaved:
    """The configuration file holds all up to this commit, so the journal may forget it. Reply: None, when it has."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Erase:
    """News to the config store: these entries were taken and are destroyed; no file shall have them any longer."""

    names: tuple[str, ...]


# --- config store and backup ---


@dataclass(frozen=True, slots=True)
class ApplyConfiguration:
    """Merge a document into the settings, additively, and save. Reply: :class:`Applied`. Errors: ConfigurationError."""

    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Applied:
    """What an additive merge did; paths such as ``services._access_key``."""

    added: tuple[str, ...]
    kept: tuple[str, ...]
    """Already there with another value; left untouched."""


@dataclass(frozen=True, slots=True)
class DropAccessKey:
    """Take the ``_access_key`` out of a section and save: named keys have its place. Reply: None.

    Errors: ConfigurationError (it is another key than those that were taken over), Unavailable.
    """

    section: str
    digests: tuple[str, ...]
    """SHA-256 of each key that the section may have, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class RenewSecret:
    """Put another discovery secret into the settings and save. Reply: None.

    Errors: ConfigurationError (it is not this file's, or the registry has it), Unavailable.
    """

    secret: str = field(repr=False)
    """64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class DropNamespace:
    """Take the sections of an extension, or of a package's modules, out of the configuration, and save.

    Reply: a tuple of the sections that were there. Errors: Unavailable.
    """

    namespace: str


@dataclass(frozen=True, slots=True)
class ReloadSettings:
    """Read the files' settings again. Reply: the :data:`Settings` now in force. Errors: ConfigurationError."""


@dataclass(frozen=True, slots=True)
class Save:
    """Write the configuration file, entries included. Reply: None. Errors: Unavailable."""


@dataclass(frozen=True, slots=True)
class GetDocument:
    """Reply: :class:`Document`, everything that a backup holds."""


@dataclass(frozen=True, slots=True)
class Document:
    """A complete state: the settings as they are saved, and the entries."""

    settings: Settings
    entries: Mapping[str, bytes]
    sequence: int


@dataclass(frozen=True, slots=True)
class BackupNow:
    """Make a backup even if nothing changed. Reply: :class:`BackupInfo`. Errors: Unavailable."""


@dataclass(frozen=True, slots=True)
class ListBackups:
    """Reply: a tuple of :class:`BackupInfo`, newest first."""


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """One file in the backups folder."""

    path: str
    made_at: float
    """Unix time in seconds, from the file's name."""
    size_bytes: int


# --- health ---


@dataclass(frozen=True, slots=True)
class Health:
    """Reply: :class:`HealthReport`."""

    folders: bool = False
    """Whether paths are shown in full, as to an operator; otherwise only their last parts."""


@dataclass(frozen=True, slots=True)
class PartHealth:
    """How one part of the broker is."""

    name: str
    ok: bool
    since: float
    """Unix time in seconds of the last change of ``ok``."""
    detail: str = ""
    restarts: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)
    state: str = field(init=False)
    """In one word: ``ok``, ``warning`` (well, but ``detail`` says what to look at) or ``fail``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", ("warning" if self.detail else "ok") if self.ok else "fail")


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How the whole broker is."""

    ok: bool
    """Whether it serves as it should: an extension or the log that fails does not count."""
    parts: tuple[PartHealth, ...]
    state: str = field(init=False)
    """In one word: ``fail`` if it is not ok, ``warning`` if a part of it is not, else ``ok``."""

    def __post_init__(self) -> None:
        ill = any(part.state != "ok" for part in self.parts)
        object.__setattr__(self, "state", ("warning" if ill else "ok") if self.ok else "fail")


@dataclass(frozen=True, slots=True)
class Measure:
    """Reply: :class:`Measured`."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The health, and what all parts count."""

    health: HealthReport
    counts: Mapping[str, Mapping[str, Any]]
    """Part to the ``counts`` of its last :class:`Pong`.

    Each actor also has ``inbox`` (messages that wait), ``inbox_max``, ``age_secs`` (since it was started or put in
    another one's place), ``restarts``, and ``silent_secs`` (since a ping that was not answered, without any progress).
    """


# --- extensions ---


@dataclass(frozen=True, slots=True)
class Call:
    """Run one method of an extension. Reply: :class:`CallResult`.

    Errors: Unauthorized (no such method, or the module cannot be imported),
    ExtensionFailed, Overloaded (queue full), TimedOut.
    """

    method: str
    qs: Mapping[str, str]
    """First value of each parameter; the access key is never among them."""
    source: str
    """The requesting address as text."""
    request_id: str
    idempotency_key: str | None = None
    caller: str = ""
    """The name of the caller's access key; empty if it has none."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """What a method answered, checked and fit to be sent."""

    status: int
    message: str
    """One line for the reason phrase and, when ``status`` is not 200, for the body."""
    content_type: str
    body: bytes


# --- discovery ---


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram as it came in, passed to the discovery actor."""

    payload: bytes
    sender: tuple[Any, ...]
    """The socket address to answer to."""


@dataclass(frozen=True, slots=True)
class CertificateChanged:
    """News to discovery: the broker serves with another certificate now."""

    fingerprint: str
    """SHA-256, as in :func:`bpbroker.server.host_certificate.fingerprint`."""


# --- the broker as a whole: its main loop answers at the address "broker" ---


@dataclass(frozen=True, slots=True)
class Reload:
    """Read configuration, certificate and extension modules again, and open the log files again.

    Reply: :class:`Reloaded`. Errors: ConfigurationError, when the configuration or the certificate cannot be used.
    """


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The result of a reload."""

    problems: tuple[str, ...] = ()
    """Each part that could not be used and stays as it was, a sentence each."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the broker as SIGTERM does. Reply: None, before it begins."""
