"""A certificate authority for development, and certificates of it.

What belongs here: what stands in a certificate, and files. A peer's certificate holds its id and no
host, so that it can serve anywhere; the coordinator's holds the hosts at which peers call it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relayswarm.errors import ConfigError

CA = "ca"
COORDINATOR = "coordinator"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_SKEW = timedelta(hours=1)  # clocks of other machines may be behind


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate's file, and whether it was there before."""

    path: Path
    kept: bool


class Authority:
    """The CA of a folder: `ca.pem` and `ca.key`, taken up if they are there, else made."""

    def __init__(self, folder: Path, days: int) -> None:
        """Raises ConfigError if the folder cannot be used."""
        self._folder, self._days = folder, days
        with _files(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.kept = self._path(CA, "pem").exists()
            if self.kept:
                self._take_up()
            else:
                self._found()

    @property
    def path(self) -> Path:
        """Its certificate."""
        return self._path(CA, "pem")

    def issue(self, name: str, hosts: Iterable[str] = ()) -> Made:
        """A certificate and key for `name`, and for `hosts` besides; one that is there stays."""
        path = self._path(name, "pem")
        if path.exists():
            return Made(path, kept=True)
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            self._begin(name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(_alternatives([name, *hosts]), critical=False)
        )
        with _files(self._folder):
            self._write(name, key, builder.sign(self._key, hashes.SHA256()))
        return Made(path, kept=False)

    def _found(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, "relayswarm development CA")]
        )
        builder = self._begin("relayswarm development CA", self._key.public_key())
        self._certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_ca_usage(), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._write(CA, self._key, self._certificate)

    def _take_up(self) -> None:
        path = self._path(CA, "key")
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            self._certificate = x509.load_pem_x509_certificate(self.path.read_bytes())
        except (ValueError, TypeError) as error:
            raise _unusable(path, f"holds no usable key or certificate ({error})") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _unusable(path, "is no key of an elliptic curve")
        if key.public_key() != self._certificate.public_key():
            raise _unusable(path, "is not the key of ca.pem")
        self._key, self._name = key, self._certificate.subject

    def _begin(self, name: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + timedelta(days=self._days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(key_id, critical=False)
        )

    def _write(
        self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        """The key first: who finds a certificate also finds its key."""
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write_secret(self._path(name, "key"), secret)
        self._path(name, "pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _path(self, name: str, kind: str) -> Path:
        return self._folder / f"{name}.{kind}"


def make_certificates(
    folder: Path, names: Sequence[str], hosts: Sequence[str], days: int
) -> list[Made]:
    """The CA, the coordinator's certificate for `hosts` and this machine, and one for each name.

    Raises ConfigError for names that cannot stand in a certificate, and unusable folders.
    """
    for name in names:
        _check_name(name)
    authority = Authority(folder, days)
    made = [Made(authority.path, authority.kept)]
    made.append(authority.issue(COORDINATOR, dict.fromkeys((*LOCAL_HOSTS, *hosts))))
    return made + [authority.issue(name) for name in dict.fromkeys(names)]


def _check_name(name: str) -> None:
    problem = ""
    if name in (CA, COORDINATOR):
        problem = "has a meaning of its own here"
    elif _is_ip(name) or not all(c.isalnum() or c in "._-" for c in name) or not name.isascii():
        problem = "cannot be told from an address, or holds other signs than letters, digits, . _ -"
    elif not 0 < len(name) <= 63 or not name[0].isalnum():
        problem = "is empty, longer than 63 characters, or begins with a sign"
    if problem:
        raise ConfigError("--id", name, problem, "choose an id such as peer-0")


def _alternatives(names: Iterable[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [x509.IPAddress(ip_address(n)) if _is_ip(n) else x509.DNSName(n) for n in names]
    )


def _is_ip(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
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


def _write_secret(path: Path, content: bytes) -> None:
    """For its owner's eyes only, from the first moment."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


@contextmanager
def _files(folder: Path) -> Iterator[None]:
    """What the file system refuses becomes one clear error."""
    try:
        yield
    except OSError as error:
        raise _unusable(folder, f"cannot be written or read ({error.strerror})") from error


def _unusable(path: Path, problem: str) -> ConfigError:
    return ConfigError("DIR", str(path), problem, "name another folder")
