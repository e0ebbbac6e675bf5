"""A certificate authority of one's own: for the bus, its clients, and what is answered over HTTP. X.509 by `cryptography`.

A directory with `ca.pem` and `ca.key`, and a pair `NAME.pem`, `NAME.key` for each certificate. Keys are P-256 and lie in files
with mode 0600. The authority's own key is needed to issue and to renew, by nobody who runs: keep it elsewhere.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libs.access.keys import write_secret
from libs.config.yamlfile import BadInputError

CA_DAYS, DAYS = 3650, 397
"""An authority is replaced by hand, a certificate by `rekindle pki renew`."""
SOON_DAYS = 30
"""Of a certificate that ends within so many days `rekindle doctor` and `rekindle pki show` warn."""
EARLY = datetime.timedelta(hours=1)
"""A certificate holds from so long before it was made: clocks differ."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
CA = "ca"


@dataclass(frozen=True, slots=True)
class Shown:
    """One certificate as it lies there."""

    name: str
    path: Path
    names: tuple[str, ...]
    """Host names and addresses that it is for."""
    ends: datetime.datetime
    authority: bool

    def days_left(self, now: datetime.datetime) -> float:
        """May be negative."""
        return (self.ends - now).total_seconds() / 86400


@dataclass(frozen=True, slots=True)
class Pki:
    directory: Path

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def init(self, common_name: str, days: int = CA_DAYS) -> bool:
        """Make the authority; False where it is there already. Raises BadInputError."""
        if self.certificate(CA).exists():
            return False
        key, subject, now = _new_key(), _subject(common_name), _now()
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = (
            _builder(subject, subject, key, now, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        self._write(CA, made, key)
        return True

    def issue(self, name: str, names: Sequence[str] = (), days: int = DAYS) -> None:
        """A certificate for a server of these host names and addresses, which may be a client as well; without any, for a
        client alone. In place of one that is there. Raises BadInputError."""
        if not NAME.fullmatch(name) or name == CA:
            raise BadInputError(f"NAME: {name!r} is no name of a certificate: letters, digits, . - and _")
        authority, ca_key = self._authority()
        key, now = _new_key(), _now()
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if names:
            uses.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        left = (authority.not_valid_after_utc - now).days
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = (
            _builder(_subject(name), authority.subject, key, now, min(days, left))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(one) for one in names]), critical=False
            )
        self._write(name, builder.sign(ca_key, hashes.SHA256()), key)

    def renew(self, name: str, days: int = DAYS) -> None:
        """Another certificate and key for the same names. Raises BadInputError."""
        self.issue(name, self.read(name).names, days)

    def read(self, name: str) -> Shown:
        """Raises BadInputError."""
        return shown(self.certificate(name))

    def holds(self, name: str, names: Sequence[str]) -> bool:
        """Whether there is such a certificate for these names that does not end soon."""
        if not self.certificate(name).exists() or not self.key(name).exists():
            return False
        found = self.read(name)
        return set(found.names) == set(names) and found.days_left(_now()) > SOON_DAYS

    def all(self) -> list[Shown]:
        """The authority first. Raises BadInputError for a file that cannot be read."""
        found = [shown(path) for path in sorted(self.directory.glob("*.pem"))]
        return sorted(found, key=lambda one: (not one.authority, one.name))

    def _authority(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate(CA).read_bytes())
            key = serialization.load_pem_private_key(self.key(CA).read_bytes(), password=None)
        except OSError as error:
            raise BadInputError(
                f"{error.filename}: cannot be read: {error.strerror}; `rekindle pki init` makes an authority, and its key is "
                "needed to issue"
            ) from error
        except ValueError as error:
            raise BadInputError(f"{self.directory}: ca.pem or ca.key cannot be used: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise BadInputError(f"{self.key(CA)}: is not the key of {self.certificate(CA)}")
        return certificate, key

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # a server that reads them in between finds no pair, and goes on with the one that it has
            write_secret(self.key(name), secret)
            fresh = self.directory / f".{name}.pem.new"
            fresh.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            fresh.replace(self.certificate(name))
        except OSError as error:
            raise BadInputError(f"{self.directory}: {error.filename}: {error.strerror}") from error


def shown(path: Path) -> Shown:
    """The first certificate of a file. Raises BadInputError."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInputError(f"{path}: is no certificate: {error}") from error
    try:
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(one.value) for one in alternative)
    except x509.ExtensionNotFound:
        names = ()
    try:
        authority = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        authority = False
    return Shown(path.stem, path, names, found.not_valid_after_utc, authority)


def end_of(path: Path) -> datetime.datetime:
    """When what a file holds ends: of authorities side by side the last of them, else the first certificate, which is
    the one that is shown (what follows it are its issuers). Raises BadInputError."""
    first = shown(path)
    if not first.authority:
        return first.ends
    return max(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(path.read_bytes()))


def issued_by(certificate: Path, authority: Path) -> bool:
    """Whether it bears the authority's signature. Raises BadInputError."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{certificate}, {authority}: {error}") from error
    try:
        found.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    if days < 1:
        raise BadInputError("--days: the authority ends within a day: make another one")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _general(name: str) -> x509.GeneralName:
    """An address or a host name. Raises BadInputError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]{0,252})", name):
        raise BadInputError(f"--name: {name!r} is neither a host name nor an address")
    return x509.DNSName(name)
