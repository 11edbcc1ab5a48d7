"""Certificates for development: what stands in them, and what happens to those that are there."""

from pathlib import Path

import pytest
from cryptography import x509

from peer.cli import main
from relayswarm.errors import ConfigError
from relayswarm.net.certificates import make_certificates


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_a_peers_certificate_holds_its_id_alone(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["peer-0"], ["host.example", "10.1.2.3"], days=2)
    authority, peer, coordinator = (
        load(tmp_path / f"{name}.pem") for name in ("ca", "peer-0", "coordinator")
    )
    assert peer.subject.rfc4514_string() == "CN=peer-0"
    assert names(peer) == ["peer-0"]
    local = ["coordinator", "localhost", "127.0.0.1", "::1"]
    assert names(coordinator) == [*local, "host.example", "10.1.2.3"]
    for certificate in (peer, coordinator):
        certificate.verify_directly_issued_by(authority)
        assert 2 <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days < 3


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["peer-0"], [], days=1)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}


def test_more_certificates_come_from_the_same_authority(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["peer-0"], [], days=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made = make_certificates(tmp_path, ["peer-0", "peer-1"], [], days=1)
    assert [(m.path.name, m.kept) for m in made] == [
        ("ca.pem", True),
        ("coordinator.pem", True),
        ("peer-0.pem", True),
        ("peer-1.pem", False),
    ]
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before == {name: after[name] for name in before}
    load(tmp_path / "peer-1.pem").verify_directly_issued_by(load(tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    "name", ["ca", "coordinator", "", "10.0.0.1", "a/b", "../up", "-x", "ü", "*", "x" * 64]
)
def test_a_name_that_cannot_be_one_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--id"):
        make_certificates(tmp_path / "new", [name], [], days=1)
    assert not (tmp_path / "new").exists()


def test_another_authoritys_key_is_an_error(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make_certificates(tmp_path / folder, [], [], days=1)
    (tmp_path / "a/ca.key").write_bytes((tmp_path / "b/ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key.*not the key of ca\.pem"):
        make_certificates(tmp_path / "a", ["peer-0"], [], days=1)
    (tmp_path / "a/ca.key").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"ca\.key.*no usable key"):
        make_certificates(tmp_path / "a", ["peer-0"], [], days=1)


def test_the_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    with pytest.raises(SystemExit) as ended:
        main(["certs", str(folder), "--peers", "2", "--id", "operator", "--host", "c.example"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    expected = ("ca", "coordinator", "peer-0", "peer-1", "operator")
    assert lines == [str(folder / f"{name}.pem") for name in expected]
