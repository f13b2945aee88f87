"""This host's certificate and its key: the pair of files, made, renewed, read and checked."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bpbroker import files
from bpbroker.discovery.interfaces import interfaces
from bpbroker.errors import ConfigurationError
from bpbroker.server import own_pair, tls
from bpbroker.text import command_line

logger = logging.getLogger(__name__)

VALID_DAYS: Final = 3650
_MADE_AFTER: Final = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
"""Release of this version: a clock that shows an earlier time is wrong. A new certificate is valid from this moment on,
or from an earlier one, and for :data:`VALID_DAYS` after it at least."""
WARN_DAYS: Final = 30
_HOST_NAME: Final = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_PEM_MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Certificate:
    """The facts about a certificate that are shown to people."""

    subject: str
    names: tuple[str, ...]
    """Host names and addresses for which it is valid."""
    not_before: datetime.datetime
    """In UTC."""
    not_after: datetime.datetime
    """In UTC."""
    fingerprint: str
    """SHA-256 of its DER, as pairs of upper-case hexadecimal digits with colons between."""

    def days_left(self, now: datetime.datetime) -> int:
        """Return the whole days until it expires; negative when it has."""
        return (self.not_after - now).days

    def problem(self, now: datetime.datetime) -> str:
        """Return why clients that check its time refuse it now or soon, in words; empty if they do not."""
        if now < self.not_before:
            return f"is not valid before {self.not_before:%Y-%m-%d %H:%M} UTC, and the clock says {now:%Y-%m-%d %H:%M}"
        left = self.days_left(now)
        if left < 0:
            return "has expired"
        return f"expires in {left} days" if left < WARN_DAYS else ""

    def lacks(self) -> list[str]:
        """Return the names and addresses of this host that it lacks."""
        return [name for name in own_names() if name not in self.names]


def ensure_pair(cert: Path, key: Path, hosts: Sequence[str] = ()) -> None:
    """Make a certificate and key for this host if there are none.

    A key without a certificate is left from a first start that a crash ended. Nothing was served with it, so a new
    pair takes its place. The key is kept as ``<name>.old``.

    Raises:
        ConfigurationError: the certificate exists without its key.
        ConfigurationError, StartError: they cannot be written.
    """
    heal_pair(cert, key)
    if cert.exists() and key.exists():
        return
    if cert.exists():
        raise ConfigurationError(f"{cert} is there but {key} is not; put it back, or remove both to get a new pair")
    if key.exists():
        logger.warning("%s has no certificate, so both are made anew; the old key is kept as %s.old", key, key)
        keep_older(key)
    make_pair(cert, key, hosts)
    logger.info("Made a certificate for this host: %s, SHA-256 %s", cert, fingerprint(cert))


def heal_pair(cert: Path, key: Path) -> None:
    """Finish the making or renewal of the broker's own pair after a crash.

    Raises:
        ConfigurationError, StartError: the files cannot be written.
    """
    try:
        own_pair.heal(cert, key)
    except OSError as error:
        raise files.start_error(f"Cannot write {error.filename or cert}: {error.strerror}", error) from None


def keep_older(path: Path) -> None:
    """Copy a certificate or key to ``<name>.old``, readable by its owner only.

    Raises:
        StorageFull, StorageFailed: it cannot be copied.
    """
    files.replace(path.with_name(f"{path.name}.old"), [path.read_bytes()])


def make_pair(cert: Path, key: Path, hosts: Sequence[str] = ()) -> None:
    """Write a new self-signed ECDSA P-256 certificate and its key (mode 0600), in place of old ones.

    Args:
        cert: path of the certificate, PEM.
        key: path of the key, PEM.
        hosts: names and addresses for which it is valid; this host's own if empty.

    Raises:
        ConfigurationError, StartError: they cannot be written.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    names = list(hosts) or own_names()
    general = [_general_name(name) for name in names]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    public = private.public_key()
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # The clock of a machine that boots for the first time may be days ahead, or in 1970, and is corrected later.
        # The certificate has to be valid before and after: its time begins no later than the release of this version.
        .not_valid_before(min(now - datetime.timedelta(days=1), _MADE_AFTER))
        .not_valid_after(max(now, _MADE_AFTER) + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(general), critical=False)
        # No authority: its key can sign for no other name, also where this file is trusted as an authority.
        # OpenSSL, Python and curl accept a self-signed certificate that is in the file of authorities, CA or not.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        # Python 3.13 verifies strictly (RFC 5280): a client that trusts this file as a CA needs these three
        # extensions.
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(private, hashes.SHA256())
    )
    key_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        own_pair.put(cert, key, certificate.public_bytes(serialization.Encoding.PEM), key_pem)
    except OSError as error:
        raise files.start_error(f"Cannot write {error.filename or cert}: {error.strerror}", error) from None


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def own_names() -> list[str]:
    """Return this host's name and every address of its interfaces; nothing is sent to the network.

    A look-up of the own name could take ten seconds, and fails without a default route.
    """
    addresses = [each.address for each in interfaces() if not each.link_local]
    host = socket.gethostname()
    try:
        own = [str(_general_name(host).value)]
    except ConfigurationError:
        own = []  # such as a name that is not UTF-8: no client can look it up
    return list(dict.fromkeys((*own, "localhost", "127.0.0.1", "::1", *addresses)))


def check_names(names: Sequence[str]) -> None:
    """Check that names can stand in a certificate.

    Raises:
        ConfigurationError: a name cannot.
    """
    for name in names:
        _general_name(name)


def _general_name(name: str) -> x509.GeneralName:
    """Return a host's name or address as it stands in a certificate.

    Raises:
        ConfigurationError: the text can be neither a host's name nor an address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        ascii_name = ""
    if not _HOST_NAME.fullmatch(ascii_name):
        raise ConfigurationError(
            f"{name!r} can be no host's name in a certificate: letters, digits, - and dots between"
        )
    return x509.DNSName(ascii_name)


def read_certificate(cert: Path) -> Certificate:
    """Read the first certificate in a PEM file.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        with cert.open("rb") as file:
            found = x509.load_pem_x509_certificates(file.read(_PEM_MAX_BYTES))[0]
    except OSError as error:
        raise files.start_error(f"Cannot read the certificate {cert}: {error.strerror}", error) from None
    except ValueError:
        raise ConfigurationError(f"{cert} holds no certificate in PEM form") from None
    try:
        san = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(item.value) for item in san)
    except x509.ExtensionNotFound:
        names = ()
    return Certificate(
        found.subject.rfc4514_string(),
        names,
        found.not_valid_before_utc,
        found.not_valid_after_utc,
        found.fingerprint(hashes.SHA256()).hex(":").upper(),
    )


def fingerprint(cert: Path) -> str:
    """Return the SHA-256 fingerprint of a certificate file, as ``AB:CD:…``.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return read_certificate(cert).fingerprint


def check_pair(cert: Path, key: Path) -> tls.Context:
    """Check that certificate and key can be used together; warn of a key that others can read.

    Returns:
        The TLS context that serves with them.

    Raises:
        ConfigurationError: one is missing, unreadable, or they do not belong together.
    """
    context = tls.context(cert, key)
    certificate = read_certificate(cert)
    problem = certificate.problem(datetime.datetime.now(datetime.UTC))
    if problem:
        logger.warning("The certificate %s %s; `bpbroker certificate --renew` makes a new one", cert, problem)
    if is_open(key):
        logger.warning("The private key %s can be read by others than its owner; %s", key, how_to_close(key))
    return context


def how_to_close(path: Path) -> str:
    """Return the command that makes a file, or a folder and its new files, private."""
    if sys.platform == "win32":
        right = "(OI)(CI)F" if path.is_dir() else "F"
        who = (f"*{sid}:{right}" for sid in ("S-1-3-4", "S-1-5-32-544", "S-1-5-18"))
        return command_line("icacls", str(path), "/inheritance:r", "/grant:r", *who)
    return command_line("chmod", "700" if path.is_dir() else "600", str(path))


def is_open(key: Path) -> bool:
    """Whether other users than its owner can use a key's file."""
    return files.open_to_others(key)
