"""What holds for all tests: one thread, reproducible properties, how to replay a failure."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from relayswarm.net.certificates import make_certificates
from relayswarm.net.security import Security

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
