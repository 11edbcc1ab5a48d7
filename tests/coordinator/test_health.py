"""`relayswarm health`, and options from the environment."""

from collections.abc import Callable
from typing import Any

import pytest

from coordinator.health import check_health
from peer.cli import main
from relayswarm.errors import ConfigError, ExitCode, JoinError


def test_a_coordinator_that_serves(serve: Callable[..., Any]) -> None:
    check_health(serve().server.address, timeout_s=20.0)


def test_nobody_there() -> None:
    with pytest.raises(JoinError, match=r"127\.0\.0\.1:1.*unavailable.*check the address"):
        check_health("127.0.0.1:1", timeout_s=20.0)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        check_health("nowhere", timeout_s=20.0)


def test_options_come_from_the_environment_unless_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RELAYSWARM_STATUS_COORDINATOR", "127.0.0.1:1")
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == ExitCode.COULD_NOT_JOIN
    assert "'127.0.0.1:1'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["status", "--coordinator", "127.0.0.1:2"])
    assert "'127.0.0.1:2'" in capsys.readouterr().err


def test_variables_are_named_as_options_are_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RELAYSWARM_COORDINATOR_SET", "steps=7 faults.drop=3")
    with pytest.raises(SystemExit):
        main(["coordinator", "--listen", "127.0.0.1:0"])
    assert "faults.drop = 3" in capsys.readouterr().err
