"""Three sites, each a compose project on a network of its own, form one swarm with mTLS.

`make test-sites` runs this. The run and the site's law are those of docs/sites.md. The
coordinator is a process of this machine. One site publishes a port there; two can only dial out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from relayswarm.net.certificates import make_certificates
from systemtests.engine import BUILD_S, ROOT, Compose, engine, make_base_images, note
from systemtests.prometheus import until
from tests.docs.sessions import files_of

FILE = "deploy/compose.site.yml"
FILES = files_of(ROOT / "docs/sites.md")
WEIGHTS = {"site-a": 1200, "site-b": 300, "site-c": 4500}
COORDINATOR_PORT, SITE_PORT = 51950, 51951
USER = 10001  # of the containers
TOKEN = "a token of the test of three sites"
STATE = "/var/lib/relayswarm/state"
PATIENCE_S = 600.0

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of an engine that has the peer's image."""
    with engine(tmp_path_factory.mktemp("engine")) as found:
        make_base_images(found)
        note("base images are there")
        folder = tmp_path_factory.mktemp("build")
        (folder / "site.env").touch()
        builder = Compose({**found, "SITE_DIR": str(folder)}, folder, base=FILE)
        builder("build", timeout_s=BUILD_S)
        note("the image is built")
        yield found


def write_site(folder: Path, certificates: Path, options: dict[str, str]) -> None:
    """What docs/sites.md says that a site has."""
    for name in ("data", "settings"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "samples").touch()
    (folder / "settings" / "site.toml").write_text(FILES["site.toml"])
    (folder / "token").write_text(TOKEN + "\n")
    own = options["RELAYSWARM_PEER_ID"]
    for source, target in (("ca.pem",) * 2, (f"{own}.pem", "peer.pem"), (f"{own}.key", "peer.key")):
        shutil.copy(certificates / source, folder / target)
    for name in ("peer.key", "token", "data", "data/samples"):
        os.chown(folder / name, USER, USER)
    (folder / "site.env").write_text("".join(f"{name}={v}\n" for name, v in options.items()))


@contextmanager
def coordinator(folder: Path, certificates: Path, host: str) -> Iterator[str]:
    """A process of this machine; gives its address."""
    (folder / "run.toml").write_text(FILES["run.toml"])
    (folder / "tokens").write_text(TOKEN + "\n")
    address = f"{host}:{COORDINATOR_PORT}"
    command = [sys.executable, "-m", "peer.cli", "coordinator", "--listen", address]
    command += ["--config", str(folder / "run.toml"), "--token-file", str(folder / "tokens")]
    for kind, name in (("ca", "ca.pem"), ("cert", "coordinator.pem"), ("key", "coordinator.key")):
        command += [f"--tls-{kind}", str(certificates / name)]
    with (
        (folder / "coordinator.log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process,
    ):
        try:
            yield address
        finally:
            process.terminate()


def address_of_engine() -> str:
    """The machine's address on the engine's own network, which all containers reach."""
    command = ("ip", "-4", "-json", "address", "show", "dev", "docker0")
    (shown,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    (address,) = (one["local"] for one in shown["addr_info"])
    return str(address)


class Site:
    """A compose project, and its only container."""

    def __init__(self, name: str, environment: dict[str, str], folder: Path, port: str) -> None:
        self.name = name
        own = {"COMPOSE_PROJECT_NAME": f"relayswarm-{name}", "SITE_DIR": str(folder)}
        self.compose = Compose({**environment, **own, "SITE_PORT": port}, folder, base=FILE)

    @property
    def container(self) -> dict[str, Any]:
        (found,) = self.compose.containers("peer")
        return found

    @property
    def network(self) -> tuple[str, str]:
        """Its name, and the container's address on it."""
        ((name, found),) = self.container["NetworkSettings"]["Networks"].items()
        return name, found["IPAddress"]

    def execute(self, *command: str) -> str:
        return self.compose.docker("exec", self.container["Id"], *command)

    def fails(self, *command: str) -> str:
        with pytest.raises(subprocess.CalledProcessError) as refused:
            self.execute(*command)
        return str(refused.value.stdout)

    def has_finished(self) -> bool:
        return any(line["event"] == "peer_finished" for line in self.compose.log(self.container))

    def is_healthy(self) -> bool:
        return bool(self.container["State"]["Health"]["Status"] == "healthy")

    def digest(self) -> str:
        return self.execute("sha256sum", f"{STATE}/model.safetensors").split()[0]


def test_three_sites_end_with_one_model(environment: dict[str, str], tmp_path: Path) -> None:
    host = address_of_engine()
    certificates = tmp_path / "certificates"
    make_certificates(certificates, list(WEIGHTS), [host], days=1)
    with ExitStack() as stack:
        address = stack.enter_context(coordinator(tmp_path, certificates, host))
        sites = []
        for k, (name, weight) in enumerate(WEIGHTS.items()):
            port = f"{host if k == 0 else '127.0.0.1'}:{SITE_PORT + k}"
            way = {"ADVERTISE": port} if k == 0 else {"REACHABILITY": "dial-only"}
            way |= {"SITE": "/etc/relayswarm/site.toml"} if name == "site-c" else {}
            own = {"ID": name, "COORDINATOR": address, "WEIGHT": str(weight), **way}
            options = {f"RELAYSWARM_PEER_{option}": value for option, value in own.items()}
            write_site(tmp_path / name, certificates, {**options, "OMP_NUM_THREADS": "1"})
            site = Site(name, environment, tmp_path / name, port)
            stack.callback(site.compose, "down", "--volumes", "--remove-orphans")
            site.compose("up", "--detach")
            sites.append(site)
        note("three sites are up")
        for site in sites:
            until(site.has_finished, f"{site.name} has finished", PATIENCE_S)
        note("all have finished")
        check_walls(sites)
        check_hand_over(sites)
        check_return(sites[1])
        verified = sites[2].execute("relayswarm", "audit", "verify", f"{STATE}/audit.jsonl")
        assert "a whole chain" in verified


def check_walls(sites: list[Site]) -> None:
    """Networks have nothing in common, data can only be read, and keys are no variables."""
    networks = {site.name: site.network for site in sites}
    assert len({name for name, _ in networks.values()}) == len(sites)
    for site in sites:
        assert "Read-only file system" in site.fails("touch", "/data/samples")
        assert "BEGIN" not in str(site.container["Config"]["Env"])
        for other in sites:
            call = f"import socket; socket.create_connection(({other.network[1]!r}, 50051), 5)"
            if other is not site:
                assert "TimeoutError" in site.fails("python", "-c", call)
    note("no site reaches another's container")


def check_hand_over(sites: list[Site]) -> None:
    """The same file at all sites, made of all sites' models with their weights."""
    assert len({site.digest() for site in sites}) == 1
    for site in sites:
        told = json.loads(site.execute("cat", f"{STATE}/model.json"))
        assert told["is_common"] is True
        assert sorted(told["participants"]) == sorted(WEIGHTS)
        assert told["missing"] == []
        assert told["model_sha256"] == site.digest()
    note(f"one model at all sites: {told['swarm_metrics']}")


def check_return(site: Site) -> None:
    """A site that is started again is there again, with that model."""
    before = site.digest()
    site.compose("restart")
    until(site.is_healthy, f"{site.name} is healthy again", PATIENCE_S)
    assert site.digest() == before
    note(f"{site.name} was started again and has it still")
