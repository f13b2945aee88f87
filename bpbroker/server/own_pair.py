"""The files of the certificate and key that the broker makes for itself: a pair also after a power cut.

Two files cannot be replaced at once. So the new ones are written durably beside the old ones, the key, then the
certificate. When the certificate is there, the new pair counts: it is put in place, the key first. If a crash
interrupts that, :func:`heal` finishes it at the next start. A new pair that is not complete is removed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from bpbroker import files

logger = logging.getLogger(__name__)


def staged(path: Path) -> Path:
    """Return the path of a new file before it takes the place of the old one."""
    return path.with_name(f"{path.name}.staged")


def put(cert: Path, key: Path, cert_pem: bytes, key_pem: bytes) -> None:
    """Replace a pair; after a crash the whole old or the whole new pair is there.

    Raises:
        OSError: it cannot be written; the old pair is still there, or :func:`heal` finishes the new one.
    """
    with files.alone_in(key.parent):
        _heal(cert, key)
        files.write_whole(staged(key), [key_pem], mode=0o600)
        files.write_whole(staged(cert), [cert_pem], mode=0o644)
        _finish(cert, key)


def heal(cert: Path, key: Path) -> None:
    """Finish a call of :func:`put` that a crash interrupted.

    Raises:
        OSError: it cannot be done.
    """
    if staged(cert).exists() or staged(key).exists():
        with files.alone_in(key.parent):
            _heal(cert, key)


def _heal(cert: Path, key: Path) -> None:
    files.sync_folder(key.parent)  # the process that made these files may have been killed before they were durable
    if staged(cert).exists():
        if _fit(staged(cert), staged(key) if staged(key).exists() else key):
            logger.info("The new certificate %s, whose making was cut off, is put in place", cert)
            _finish(cert, key)
            return
        logger.warning("%s is removed: there is no key for it", staged(cert))
    files.remove(staged(cert))
    files.remove(staged(key))


def _finish(cert: Path, key: Path) -> None:
    if staged(key).exists():
        files.rename(staged(key), key)
    files.rename(staged(cert), cert)


def _fit(cert: Path, key: Path) -> bool:
    """Return whether a certificate and a key are a pair."""
    try:
        check(cert.read_bytes(), key.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def check(cert_pem: bytes, key_pem: bytes) -> str:
    """Check that a certificate and a key are a pair; return the certificate's SHA-256 fingerprint, as ``AB:CD:…``.

    Raises:
        ValueError: they are not.
    """
    try:
        certificate = x509.load_pem_x509_certificate(cert_pem)
        private = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):  # TypeError: the key needs a password
        raise ValueError("it is no certificate with its key in PEM form") from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
        raise ValueError("certificate and key are not a pair")
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()
