"""Certificates and keys made on the fly, for what stays on this machine."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOST: Final = "127.0.0.1"
CERTIFICATES: Final = {"ca": "ca.pem", "certificate": "server.pem", "key": "server.key"}


def given(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command."""
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def tls_options(folder: Path) -> dict[str, object]:
    """The options of Flower's servers for TLS with what `certify` made there."""
    files = {part: folder / name for part, name in CERTIFICATES.items()}
    return {
        "ssl-ca-certfile": files["ca"],
        "ssl-certfile": files["certificate"],
        "ssl-keyfile": files["key"],
    }


def certify(folder: Path) -> None:
    """A certificate authority of this folder's own, and a certificate for 127.0.0.1, valid for ten years.

    Its key is not kept, so nothing else can ever be vouched for by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if all((folder / name).exists() for name in CERTIFICATES.values()):
        return
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedbpt demo authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"),
        False,
    )  # fmt: skip
    signing = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage)
    own = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    root = (
        _certificate(issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signing, critical=True)
        .add_extension(own, critical=False)
        .sign(authority, hashes.SHA256())
    )
    leaf = (
        _certificate(subject, issuer, server)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
        .sign(authority, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    key = server.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / CERTIFICATES["ca"]).write_bytes(root.public_bytes(serialization.Encoding.PEM))
    (folder / CERTIFICATES["certificate"]).write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    _secret(folder / CERTIFICATES["key"], key)


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A node's new pair of keys, as Flower reads them: the files of the private and the public one."""
    key = ec.generate_private_key(ec.SECP384R1())
    encoding, plain = serialization.Encoding, serialization.NoEncryption()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    _secret(private, key.private_bytes(encoding.PEM, serialization.PrivateFormat.OpenSSH, plain))
    public.write_bytes(key.public_key().public_bytes(encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    return private, public


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
    )


def _secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_bytes(data)
