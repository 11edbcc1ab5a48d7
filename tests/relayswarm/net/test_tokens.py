"""Join tokens: which are taken, and how they are changed while processes run."""

import hmac
import os
from pathlib import Path

import pytest

from relayswarm.errors import ConfigError
from relayswarm.net.tokens import TokenFile

OLD, NEW = "old-secret-0123456789", "new-secret-0123456789"


def write(path: Path, *tokens: str) -> None:
    """In one move, as an editor or Kubernetes does it."""
    other = path.with_name("other")
    other.write_text("# join tokens\n\n" + "\n".join(tokens) + "\n", encoding="ascii")
    other.replace(path)


def shows(token: str, scheme: str = "Bearer ") -> tuple[tuple[str, str], ...]:
    return (("user-agent", "x"), ("authorization", scheme + token))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_takes_any_token_of_the_file_and_nothing_else(path: Path) -> None:
    write(path, OLD, NEW)
    tokens = TokenFile(path)
    assert tokens.accepts(shows(OLD))
    assert tokens.accepts(shows(NEW))
    wrong = (OLD[:-1], OLD + "x", OLD.upper(), "", "# join tokens", "\xff" * 20)
    assert not any(tokens.accepts(shows(token)) for token in wrong)
    assert not tokens.accepts(shows(OLD, scheme="Basic "))
    assert not tokens.accepts(())


def test_a_token_is_compared_with_all_of_the_file_in_constant_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long it takes tells neither how much of a token is right, nor which it is."""
    compared = []

    def compare_digest(shown: bytes, known: bytes) -> bool:
        compared.append((shown, known))
        return hmac.compare_digest(shown, known)

    monkeypatch.setattr("relayswarm.net.tokens.compare_digest", compare_digest)
    write(path, OLD, NEW)
    tokens = TokenFile(path)
    for shown in (OLD, NEW, OLD[:-1] + "x"):
        compared.clear()
        tokens.accepts(shows(shown))
        assert compared == [
            (f"Bearer {shown}".encode(), f"Bearer {t}".encode()) for t in (OLD, NEW)
        ]


def test_rotation_needs_no_restart(path: Path) -> None:
    write(path, OLD)
    tokens = TokenFile(path)
    assert not tokens.accepts(shows(NEW))
    write(path, NEW, OLD)
    assert tokens.accepts(shows(NEW))
    assert tokens.accepts(shows(OLD))
    write(path, NEW)
    assert tokens.accepts(shows(NEW))
    assert not tokens.accepts(shows(OLD))


def test_a_caller_shows_the_first_token_of_now(path: Path) -> None:
    write(path, OLD)
    tokens = TokenFile(path)
    assert tokens.metadata() == (("authorization", f"Bearer {OLD}"),)
    write(path, NEW, OLD)
    assert tokens.metadata() == (("authorization", f"Bearer {NEW}"),)


def test_a_file_that_is_gone_or_half_written_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, OLD)
    tokens = TokenFile(path)
    path.write_text("")
    assert tokens.accepts(shows(OLD))
    assert not tokens.accepts(shows(""))
    os.unlink(path)
    assert tokens.accepts(shows(OLD))
    assert "going on with the tokens of before" in caplog.text
    write(path, NEW)
    assert tokens.accepts(shows(NEW))
    assert not tokens.accepts(shows(OLD))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"# nothing\n\n", "holds no token"),
        (b"short\n", "fewer than 16"),
        (b"a token\x07of sixteen characters\n", "no text"),
        ("ü".encode() * 16, "ASCII"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_file_of_tokens_is_an_error(
    path: Path, content: bytes | None, problem: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"--token-file = .*{problem}.*one token a line"):
        TokenFile(path)
