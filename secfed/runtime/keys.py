"""Keys of a deployment, made where they are used: files that only their owner reads.

A site has an *identity* (Ed25519), which signs what it says, and a *node key* (NIST
P-384), with which Flower admits its connection. A coordinator has a signing key
(``secfed.signing``) and a certificate authority, made once and kept, under which its
server's certificate stands. Only requests and rosters travel.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocols.keys import KEY_BYTES, SigningKey, generate_identity
from secfed.errors import RunDirectoryError, VerificationError
from secfed.runtime.roster import make_request
from secfed.signing import RECORD, framed

__all__ = [
    "AUTHORITY_NAME",
    "IDENTITY_NAME",
    "SiteKeys",
    "certificate_fingerprint",
    "make_authority",
    "make_server_certificate",
    "make_site_keys",
    "read_site_keys",
]

AUTHORITY_NAME: Final = "authority.pem"
_AUTHORITY_KEY: Final = "authority.key"
_SERVER_KEY: Final = "server.key"
_SERVER_NAME: Final = "server.pem"
IDENTITY_NAME: Final = "identity.key"
_NODE: Final = "node.key"
_AUTHORITY_DAYS: Final = 3650
_SERVER_DAYS: Final = 397  # The longest that browsers accept; renewed by the authority.


class SiteKeys:
    """The keys of one site, read from its folder."""

    def __init__(self, identity: SigningKey, node_file: Path, node_public: str) -> None:
        self.identity = identity
        self.node_file = node_file
        self.node_public = node_public

    def request(self, site: str) -> bytes:
        """The signed request that goes to the coordinator."""
        return make_request(self.identity, site, self.node_public)

    def sign_record(self, message: bytes) -> bytes:
        """Sign a withdrawal or an incident; 64 bytes."""
        return self.identity.sign(framed(RECORD, message))

    def __repr__(self) -> str:
        return "SiteKeys(<private>)"


def make_site_keys(folder: Path) -> SiteKeys:
    """Make a site's two keys; keys that are there are kept.

    Raises:
        RunDirectoryError: A key file is damaged or can be read by others.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / IDENTITY_NAME).exists():
        identity = generate_identity(os.urandom(KEY_BYTES))
        _write_secret(
            folder / IDENTITY_NAME, identity.to_bytes().hex().encode() + b"\n"
        )
    if not (folder / _NODE).exists():
        node = ec.generate_private_key(ec.SECP384R1())
        data = node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        _write_secret(folder / _NODE, data)
    return read_site_keys(folder)


def read_site_keys(folder: Path) -> SiteKeys:
    """A site's keys.

    Raises:
        RunDirectoryError: A key is missing, damaged, or can be read by others.
    """
    identity, node = _read_secret(folder / IDENTITY_NAME), _read_secret(folder / _NODE)
    try:
        signing = SigningKey.from_bytes(bytes.fromhex(identity.decode("ascii").strip()))
        private = load_ssh_private_key(node, password=None)
    except Exception:  # noqa: BLE001 - the cause would show the file's content
        raise RunDirectoryError(f"{folder}: not the keys of a site") from None
    public = private.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return SiteKeys(signing, folder / _NODE, public.decode("ascii"))


def make_authority(folder: Path) -> Path:
    """Make a certificate authority, unless there is one; returns its certificate.

    Raises:
        RunDirectoryError: Its files are damaged or can be read by others.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate = folder / AUTHORITY_NAME
    if certificate.exists():
        _load_authority(folder)
        return certificate
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("secfed coordinator's authority")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA384())
    )
    _write_secret(folder / _AUTHORITY_KEY, _pem(key))
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    return certificate


def make_server_certificate(folder: Path, hosts: Sequence[str]) -> tuple[Path, Path]:
    """A new server key and its certificate for some host names or addresses.

    Returns:
        The certificate's file and the key's.

    Raises:
        RunDirectoryError: There is no authority in the folder.
    """
    authority, signer = _load_authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        _builder(_name(hosts[0]), authority.subject, key.public_key(), _SERVER_DAYS)
        .add_extension(
            x509.SubjectAlternativeName([_host(host) for host in hosts]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA384())
    )
    (folder / _SERVER_KEY).unlink(missing_ok=True)
    _write_secret(folder / _SERVER_KEY, _pem(key))
    (folder / _SERVER_NAME).write_bytes(made.public_bytes(Encoding.PEM))
    return folder / _SERVER_NAME, folder / _SERVER_KEY


def certificate_fingerprint(pem: str) -> str:
    """The SHA-256 of a certificate, as 64 hexadecimal digits.

    Raises:
        VerificationError: It is not a certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise VerificationError(f"not a certificate: {error}") from error
    return certificate.fingerprint(hashes.SHA256()).hex()


def _load_authority(
    folder: Path,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    secret = _read_secret(folder / _AUTHORITY_KEY)
    try:
        data = (folder / AUTHORITY_NAME).read_bytes()
        certificate = x509.load_pem_x509_certificate(data)
        key = load_pem_private_key(secret, password=None)
    except (OSError, ValueError):
        raise RunDirectoryError(f"{folder}: not an authority's files") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RunDirectoryError(f"{folder}: not an authority's files")
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_secret(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_secret(path: Path) -> bytes:
    """A file that nobody else can read.

    Raises:
        RunDirectoryError: It is missing, or others can read it.
    """
    try:
        status = path.lstat()
        data = path.read_bytes()
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: the key cannot be opened: {error.strerror}; see `secfed keys`"
        ) from error
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise RunDirectoryError(f"{path}: not a plain file of this user")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RunDirectoryError(
            f"{path}: the key is open to other users; take their access away "
            "(chmod 600), or make a new key if they may have read it"
        )
    return data
