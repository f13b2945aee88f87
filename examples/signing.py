"""An extension that signs the certificates of a cluster's nodes.

Copy it to the lib folder, add a section ``signing`` to the configuration and
reload: ``bpbroker install-extension --script signing.py --enable`` does all three.
Clients call::

    bpclient execute --method signing.Sign --data @node.csr --output node.crt
    bpclient execute --method signing.Authority --output ca.crt

The authority is made at the first call; its key never leaves the folder
``signing`` in the broker's home (``dir`` in the section names another one). What a
certificate is good for, the broker decides: of a request only its key and its
common name count, and the certificate is for that name and the caller's own address.
Give the section an ``_access_key``, or use named keys: who may call it may join.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import bpbroker.config
from bpbroker.extensions import Error, Request

YEARS = 10
DAYS = 365


def Sign(rh: Request) -> None:
    """Return the certificate for the request in ``data``, PEM."""
    request = _request(rh.qs.get("data", ""))
    name = _common_name(request)
    key, authority = _authority(rh)
    now = datetime.now(UTC)
    addresses = [x509.IPAddress(ip_address(rh.RequestingHost().partition("%")[0]))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of new machines differ
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    rh.registry.replace(f"signed/{name}", {"serial": f"{certificate.serial_number:x}", "for": rh.RequestingHost()})
    rh.log.info("signed %s for %s", name, rh.RequestingHost())
    _send(rh, certificate)


def Authority(rh: Request) -> None:
    """Return the authority's certificate, PEM."""
    _send(rh, _authority(rh)[1])


def _send(rh: Request, certificate: x509.Certificate) -> None:
    rh.data = certificate.public_bytes(serialization.Encoding.PEM)
    rh.content_type = "application/x-pem-file"


def _request(text: str) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(text.encode())
        if request.is_signature_valid:
            return request
    except (ValueError, TypeError):
        pass
    raise Error(400, "The data is no certificate request in PEM form")


def _common_name(request: x509.CertificateSigningRequest) -> str:
    names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(names[0].value) if len(names) == 1 else ""
    if not name.isascii() or not name.replace("-", "").replace(".", "").isalnum() or len(name) > 64:
        raise Error(400, "The request must have one common name: letters, digits, dashes and dots")
    return name


def _authority(rh: Request) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return the authority's key and certificate; they are made at the first call."""
    folder = Path(rh.config.get("dir") or Path(__file__).parents[1] / "signing")  # beside the lib folder
    file = folder / "authority.pem"
    with bpbroker.config.rlock:  # one call at a time makes it
        if not file.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            _make(file)
        pem = file.read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - it was made here
    return key, x509.load_pem_x509_certificate(pem)


def _make(file: Path) -> None:
    """Write a new key and its certificate into one file, whole or not at all."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a cluster")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    new = file.with_suffix(".new")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as written:  # noqa: PTH123 - with a mode
        written.write(key.private_bytes(*form) + certificate.public_bytes(serialization.Encoding.PEM))
        written.flush()
        os.fsync(written.fileno())
    new.replace(file)
