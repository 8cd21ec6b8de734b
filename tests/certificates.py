"""An authority and certificates of its own, made for one test run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


class Authority:
    """A certificate authority; ``root`` is the file that clients are given."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.root = folder / f"{name}.crt"
        usage = x509.BasicConstraints(ca=True, path_length=0)
        self._sign(self._name, self._key, usage, self.root, valid=_DAY)

    def issue(self, host: str, *, valid: timedelta = _DAY) -> tuple[Path, Path]:
        """Certificate and key of a server with this host name; it ends ``valid`` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, key_file = self._folder / f"{host}.crt", self._folder / f"{host}.key"
        usage = x509.SubjectAlternativeName([x509.DNSName(host)])
        self._sign(_name(host), key, usage, certificate, valid=valid)
        key_file.touch(mode=0o600)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key_file

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extension: x509.ExtensionType,
        file: Path,
        *,
        valid: timedelta,
    ) -> None:
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * _DAY)
            .not_valid_after(now + valid)
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, SHA256())
        )
        file.write_bytes(certificate.public_bytes(Encoding.PEM))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
