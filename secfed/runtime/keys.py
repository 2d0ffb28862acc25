"""Keys of a deployment, made where they are used: files that only their owner reads.

A site has an *identity* (Ed25519), which signs what it says, and a *node key* (NIST
P-384), with which Flower admits its connection. A coordinator has a signing key
(``secfed.signing``) and a certificate authority, made once and kept, under which its
server's certificate stands. Only requests and rosters travel. With a protecting key
(``secfed.runtime.protection``) all of them are encrypted on disk.
"""

from __future__ import annotations

import ipaddress
import os
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
from secfed.private_files import write_private
from secfed.runtime.directory import write_atomically
from secfed.runtime.protection import (
    ProtectingKey,
    is_protected,
    protect_file,
    read_secret,
)
from secfed.runtime.roster import make_request
from secfed.signing import RECORD, CoordinatorKey, signing_key

__all__ = [
    "AUTHORITY_NAME",
    "SiteKeys",
    "any_protected",
    "certificate_fingerprint",
    "make_authority",
    "make_coordinator_key",
    "make_server_certificate",
    "make_signing_key",
    "make_site_keys",
    "protect_keys",
    "read_coordinator_key",
    "read_server",
    "read_signing_key",
    "read_site_keys",
]

AUTHORITY_NAME: Final = "authority.pem"
_AUTHORITY_KEY: Final = "authority.key"
_SERVER_KEY: Final = "server.key"
_SERVER_NAME: Final = "server.pem"
_IDENTITY: Final = "identity.key"
_NODE: Final = "node.key"
_COORDINATOR: Final = "coordinator.key"
_SECRETS: Final = (_IDENTITY, _NODE, _COORDINATOR, _AUTHORITY_KEY, _SERVER_KEY)
_AUTHORITY_DAYS: Final = 3650
_SERVER_DAYS: Final = 397  # The longest that browsers accept; renewed by the authority.


class SiteKeys:
    """The keys of one site, read from its folder."""

    def __init__(
        self, identity: SigningKey, node_private: bytes, node_public: str
    ) -> None:
        self.identity = identity
        self.node_private = node_private  # In the format of OpenSSH.
        self.node_public = node_public

    def request(self, site: str) -> bytes:
        """The signed request that goes to the coordinator."""
        return make_request(self.identity, site, self.node_public)

    @property
    def signer(self) -> CoordinatorKey:
        """The identity as a key that signs with a label: approvals, records."""
        return CoordinatorKey(self.identity.to_bytes())

    def sign_record(self, message: bytes) -> bytes:
        """Sign a withdrawal or an incident; 64 bytes."""
        return self.signer.sign(RECORD, message)

    def __repr__(self) -> str:
        return "SiteKeys(<private>)"


def make_site_keys(folder: Path, protecting: ProtectingKey | None = None) -> SiteKeys:
    """Make a site's two keys; keys that are there are kept.

    Raises:
        RunDirectoryError: A key file is damaged, can be read by others, or is not
            protected as it should be.
    """
    if not (folder / _IDENTITY).exists():
        identity = generate_identity(os.urandom(KEY_BYTES))
        data = identity.to_bytes().hex().encode() + b"\n"
        _write_secret(folder / _IDENTITY, data, protecting)
    if not (folder / _NODE).exists():
        node = ec.generate_private_key(ec.SECP384R1())
        data = node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        _write_secret(folder / _NODE, data, protecting)
    return read_site_keys(folder, protecting)


def read_site_keys(folder: Path, protecting: ProtectingKey | None = None) -> SiteKeys:
    """A site's keys.

    Raises:
        RunDirectoryError: A key is missing, damaged, can be read by others, or is not
            protected as it should be.
    """
    identity = read_secret(folder / _IDENTITY, protecting)
    node = read_secret(folder / _NODE, protecting)
    try:
        signing = SigningKey.from_bytes(bytes.fromhex(identity.decode("ascii").strip()))
        private = load_ssh_private_key(node, password=None)
    except Exception:  # noqa: BLE001 - the cause would show the file's content
        raise RunDirectoryError(f"{folder}: not the keys of a site") from None
    public = private.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return SiteKeys(signing, node, public.decode("ascii"))


def make_signing_key(
    path: Path, protecting: ProtectingKey | None = None
) -> CoordinatorKey:
    """Make a signing key, of an operator or a coordinator; one that is there is kept.

    Raises:
        RunDirectoryError: It is damaged, can be read by others, or is not protected as
            it should be.
    """
    if not path.exists() and not path.is_symlink():
        data = os.urandom(KEY_BYTES).hex().encode() + b"\n"
        _write_secret(path, data, protecting)
    return read_signing_key(path, protecting)


def read_signing_key(
    path: Path, protecting: ProtectingKey | None = None
) -> CoordinatorKey:
    """A signing key's file; none is made.

    Raises:
        RunDirectoryError: As of ``make_signing_key``, or there is none.
    """
    return signing_key(read_secret(path, protecting), path)


def make_coordinator_key(
    folder: Path, protecting: ProtectingKey | None = None
) -> CoordinatorKey:
    """``make_signing_key`` of a coordinator's folder."""
    return make_signing_key(folder / _COORDINATOR, protecting)


def read_coordinator_key(
    folder: Path, protecting: ProtectingKey | None = None
) -> CoordinatorKey:
    """``read_signing_key`` of a coordinator's folder."""
    return read_signing_key(folder / _COORDINATOR, protecting)


def make_authority(folder: Path, protecting: ProtectingKey | None = None) -> Path:
    """Make a certificate authority, unless there is one; returns its certificate.

    Raises:
        RunDirectoryError: Its files are damaged, can be read by others, or are not
            protected as they should be.
    """
    certificate = folder / AUTHORITY_NAME
    if certificate.exists():
        _load_authority(folder, protecting)
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
    # A key without a certificate was never used: a crash came between.
    _write_secret(folder / _AUTHORITY_KEY, _pem(key), protecting, replace=True)
    write_atomically(certificate, made.public_bytes(Encoding.PEM))
    return certificate


def make_server_certificate(
    folder: Path, hosts: Sequence[str], protecting: ProtectingKey | None = None
) -> None:
    """A new server key and its certificate for some host names or addresses.

    Raises:
        RunDirectoryError: There is no authority in the folder.
    """
    authority, signer = _load_authority(folder, protecting)
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
    _write_secret(folder / _SERVER_KEY, _pem(key), protecting, replace=True)
    write_atomically(folder / _SERVER_NAME, made.public_bytes(Encoding.PEM))


def read_server(
    folder: Path, protecting: ProtectingKey | None = None
) -> tuple[Path, bytes]:
    """A server's certificate file, and its private key (PEM).

    Raises:
        RunDirectoryError: The key cannot be read, or is not protected as it should be.
    """
    return folder / _SERVER_NAME, read_secret(folder / _SERVER_KEY, protecting)


def protect_keys(
    keys: Path, protecting: ProtectingKey, before: ProtectingKey | None = None
) -> tuple[str, ...]:
    """Encrypt every secret file that is not; returns their names.

    Args:
        keys: The folder of a site or of a coordinator, or an operator's one file.
        protecting: From now on.
        before: The protecting key until now, where it is replaced.

    Raises:
        RunDirectoryError: There is no key, or one cannot be read. What was changed
            stays changed; the same call again goes on.
    """
    held = _secrets_of(keys)
    if not held:
        raise RunDirectoryError(f"{keys}: no keys here; see `secfed keys`")
    if held == [keys] and not any_protected(keys):
        read_signing_key(keys)  # No other file is ever encrypted by mistake.
    return tuple(p.name for p in held if protect_file(p, protecting, before))


def any_protected(keys: Path) -> bool:
    """Whether a secret of a keys folder, or an operator's key, is encrypted already."""
    return any(is_protected(path.read_bytes()) for path in _secrets_of(keys))


def _secrets_of(keys: Path) -> list[Path]:
    """The secret files of a folder, or an operator's one file; none where it is not."""
    if not keys.is_dir():
        return [keys] if keys.exists() else []
    return [keys / name for name in _SECRETS if (keys / name).exists()]


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
    folder: Path, protecting: ProtectingKey | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    secret = read_secret(folder / _AUTHORITY_KEY, protecting)
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


def _write_secret(
    path: Path,
    data: bytes,
    protecting: ProtectingKey | None,
    *,
    replace: bool = False,
) -> None:
    held = data if protecting is None else protecting.seal(path.name, data)
    write_private(path, held, replace=replace)
