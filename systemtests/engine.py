"""A Docker engine of our own, with the compose file in it, and nothing of ours left when it ends.

The engine has a folder, a socket and base images of its own (`base_images.sh`), so that neither a
registry nor another engine's images matter. Needs root, and no other engine on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from systemtests.prometheus import until

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".testbed"  # the Debian root, for the next time
PROJECT = "relayswarm-test"
START_S, BUILD_S, COMPOSE_S = 60.0, 1800.0, 600.0


@contextmanager
def engine(folder: Path) -> Iterator[dict[str, str]]:
    """Run dockerd; gives the environment in which `docker` finds it."""
    assert os.geteuid() == 0, "a Docker engine is started here: that needs root"
    assert not Path("/sys/class/net/docker0").exists() or not _is_up("docker0"), (
        "another Docker engine is running here: stop it first (systemctl stop docker docker.socket)"
    )
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{folder / 'socket'}",
        "COMPOSE_PROJECT_NAME": PROJECT,
        "TORCH_INDEX": "file:///wheels",  # a folder of the base image, or none: then PyPI's
    }
    command = ["dockerd", "--host", environment["DOCKER_HOST"]]
    for flag, name in (("--data-root", "root"), ("--exec-root", "exec"), ("--pidfile", "pid")):
        command += [flag, str(folder / name)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: _answers(environment), f"the engine answers ({folder / 'log'})", START_S)
        yield environment
    finally:
        process.terminate()
        process.wait(timeout=START_S)
        shutil.rmtree(folder, ignore_errors=True)


def _is_up(interface: str) -> bool:
    carrier = Path(f"/sys/class/net/{interface}/operstate")
    return carrier.read_text().strip() == "up"


def _answers(environment: dict[str, str]) -> bool:
    return subprocess.run(("docker", "info"), env=environment, capture_output=True).returncode == 0


STARTED = time.monotonic()


def note(text: str) -> None:
    """Tell how far it is: this takes minutes."""
    sys.stderr.write(f"{time.monotonic() - STARTED:6.0f} s  {text}\n")


class Compose:
    """A project of compose files in an engine: by default of a whole swarm, with override files."""

    def __init__(
        self,
        environment: dict[str, str],
        folder: Path,
        *overrides: str,
        base: str = "docker-compose.yml",
    ) -> None:
        self.environment = environment
        files = (base, *overrides)
        self._files = [word for name in files for word in ("-f", name)]
        self._log = folder / "compose.log"
        plugin = subprocess.run(("docker", "compose", "version"), capture_output=True)
        self._program = ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]

    def __call__(self, *arguments: str, timeout_s: float = COMPOSE_S) -> None:
        """Run a command of Compose."""
        with self._log.open("a") as log:
            subprocess.run(
                (*self._program, *self._files, *arguments),
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                timeout=timeout_s,
                check=True,
            )

    def containers(self, service: str, *, dead: bool = False) -> list[dict[str, Any]]:
        """What the engine knows of a service's containers."""
        project = self.environment["COMPOSE_PROJECT_NAME"]
        labels = {"project": project, "service": service}.items()
        filters = (f"label=com.docker.compose.{key}={value}" for key, value in labels)
        flags = [word for one in filters for word in ("--filter", one)]
        ids = self.docker("ps", "--quiet", *(["--all"] if dead else []), *flags).split()
        return json.loads(self.docker("inspect", *ids)) if ids else []

    def docker(self, *arguments: str) -> str:
        """Run `docker`; returns what it prints."""
        return subprocess.run(
            ("docker", *arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMPOSE_S,
            check=True,
        ).stdout

    def log(self, container: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """A container's log: one JSON object a line, and nothing else."""
        return [json.loads(line) for line in self.docker("logs", container["Id"]).splitlines()]


def make_base_images(environment: dict[str, str]) -> None:
    """What the compose file builds upon, from Debian's packages."""
    script = ROOT / "systemtests/base_images.sh"
    subprocess.run((str(script), str(CACHE)), env=environment, timeout=BUILD_S, check=True)
