"""What holds for all tests: one thread, reproducible properties, how to replay a failure."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, settings

from relayswarm.net.certificates import make_certificates
from relayswarm.net.security import Security

ROOT = Path(__file__).parents[1]

# Read by torch when it is imported, and inherited by processes that tests start.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Lines of daemons as a person sees them on a terminal, of which there is none here.
for _command in ("COORDINATOR", "PEER"):
    os.environ.setdefault(f"RELAYSWARM_{_command}_LOG_FORMAT", "text")

# A slow machine is no failure, so nothing here depends on the time that an example takes.
_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("local", max_examples=100, **_COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, **_COMMON)
settings.register_profile("thorough", max_examples=5000, **_COMMON)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "local")
)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Leave the root logger as it was found: a command that runs in this process has it write to a
    stream that is closed once its test is over."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Leave torch's threads and determinism as they were found."""
    import torch

    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def relayswarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line in this process, in an empty folder; returns the exit code."""
    from peer import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        return int(ended.value.code or 0)

    return run


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Security]:
    """Settings with the certificate of a name: `certificates("peer-0", name="peer-1")`."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["peer-0", "peer-1", "peer-2", "operator"], [], days=1)

    def settings_of(who: str, **changes: Any) -> Security:
        files = {"ca": "ca.pem", "cert": f"{who}.pem", "key": f"{who}.key"}
        return Security(**({kind: folder / file for kind, file in files.items()} | changes))

    return settings_of


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """After failures, print the command that runs each of them again."""
    reports = terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", [])
    node_ids = sorted({report.nodeid for report in reports})
    if not node_ids:
        return
    profile = settings.get_current_profile_name()
    terminalreporter.section("replay")
    for node_id in node_ids:
        command = f"HYPOTHESIS_PROFILE={profile} .venv/bin/python -m pytest {shlex.quote(node_id)}"
        terminalreporter.write_line(command)


# --- programs that a coordinator brings together -----------------------------------------------

Start = Callable[..., "subprocess.Popen[str]"]

PATIENCE_S = 600.0  # for a machine that does other things too


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `python ARGUMENTS` in an empty folder; what still runs in the end is killed."""
    with ExitStack() as running:

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = running.enter_context(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            running.callback(process.kill)
            return process

        yield start


@pytest.fixture
def coordinator(start: Start) -> Callable[..., tuple[str, IO[str]]]:
    """Starts the coordinator of a run with these settings; returns its address, and its events."""

    def coordinator(*settings: str) -> tuple[str, IO[str]]:
        given = [word for setting in settings for word in ("--set", setting)]
        process = start(
            *("-m", "peer.cli", "coordinator", "--listen", "127.0.0.1:0", "--json"), *given
        )
        assert process.stdout is not None
        for line in process.stdout:
            if (found := re.search(r'"address": "([^"]+)"', line)) is not None:
                return found[1], process.stdout
        raise AssertionError("the coordinator did not start")

    return coordinator


def ended(process: subprocess.Popen[str]) -> str:
    """What a program printed, which has to end well."""
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, (output, errors)
    return output
