"""The compose file on a real engine: a swarm that grows, loses members and learns all the same.

`make test-compose` runs this. Only Grafana is left out, of which there is no Debian package;
`make test-monitoring` asks every query of its dashboard.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.baseline import first_trainer, train_centralized
from relayswarm import __version__, config
from systemtests.engine import BUILD_S, ROOT, Compose, engine, make_base_images, note
from systemtests.prometheus import Prometheus, until

SERVICES = ("coordinator", "peer", "prometheus")
STATUS = "http://127.0.0.1:9100/status.json"
PATIENCE_S = 600.0
POINTS = 0.03
BASE_IMAGE, BEYOND_BASE_BYTES = "python:3.11-slim-bookworm", 200e6
GRACE_S = 30  # that the compose file gives
# Delays make steps take their time: the swarm must not be done before all has happened to it.
# As many shards as there are peers at most: one is lost with the peer that is killed.
SETTINGS = ("steps=4000", "data.shards=6", "faults.delay_s=0.03", "evaluation.every=500")

pytestmark = pytest.mark.timeout(5400)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of an engine that has all images."""
    with engine(tmp_path_factory.mktemp("engine")) as found:
        note("engine is up")
        make_base_images(found)
        note("base images are there")
        environment = {**found, "RELAYSWARM_COORDINATOR_SET": " ".join(SETTINGS)}
        folder = tmp_path_factory.mktemp("build")
        Compose(environment, folder)("build", "coordinator", "peer", timeout_s=BUILD_S)
        note("images are built")
        yield environment


def status() -> dict[str, Any]:
    with urllib.request.urlopen(STATUS, timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def members() -> dict[str, dict[str, Any]]:
    return {one["peer"]: one for one in status()["members"]}


def until_they_train(count: int, beyond: int = 0) -> dict[str, dict[str, Any]]:
    """Until so many are members, each has averaged with all, and is beyond a step."""

    def there() -> dict[str, dict[str, Any]] | None:
        now = members()
        all_train = all(
            one["step"] > beyond and one["models_counted"] == count for one in now.values()
        )
        return now if len(now) == count and all_train else None

    found: dict[str, dict[str, Any]] = until(there, f"{count} peers train", PATIENCE_S)
    return found


def furthest() -> int:
    return max(one["step"] for one in members().values())


def peer_of(compose: Compose, container: dict[str, Any]) -> str:
    """The id that the coordinator gave it."""
    told = (line.get("peer") for line in compose.log(container))
    return next(peer for peer in told if peer)


def test_images_are_what_the_documentation_says(
    environment: dict[str, str], tmp_path: Path
) -> None:
    compose = Compose(environment, tmp_path)

    def image(name: str) -> dict[str, Any]:
        (found,) = json.loads(compose.docker("image", "inspect", name))
        return dict(found)

    for name in ("relayswarm-coordinator", "relayswarm-peer"):
        settings = image(f"{name}:{__version__}")["Config"]
        assert settings["User"] == "10001:10001"
        assert settings["Labels"]["org.opencontainers.image.version"] == __version__
        assert settings["Healthcheck"]["Test"][:3] == ["CMD", "relayswarm", "health"]
    coordinator = image(f"relayswarm-coordinator:{__version__}")
    beyond = coordinator["Size"] - image(BASE_IMAGE)["Size"]
    note(f"the coordinator's image has {beyond / 1e6:.0f} MB over its base")
    assert beyond < BEYOND_BASE_BYTES


def test_a_swarm_lives_through_it_all(environment: dict[str, str], tmp_path: Path) -> None:
    compose = Compose(environment, tmp_path)
    prometheus = Prometheus("http://127.0.0.1:9090")
    try:
        compose("up", "--detach", *SERVICES)
        until_they_train(4)
        note("4 peers train")

        compose("up", "--detach", "--no-recreate", "--scale", "peer=6", *SERVICES)
        until_they_train(6)
        note("6 peers train")
        everybody = compose.containers("peer")
        targets = {f"{address_of(one)}:9101" for one in everybody} | {"coordinator:9100"}
        until(lambda: up(prometheus) >= targets, "Prometheus scrapes all", PATIENCE_S)

        killed, cut_off, *others = everybody
        lost = peer_of(compose, killed)
        compose.docker("kill", killed["Id"])
        until(lambda: lost not in members(), "the killed peer is given up", PATIENCE_S)
        until_they_train(5, beyond=furthest())
        note("one was killed, 5 train on")
        until(lambda: peer_lost(prometheus) == "firing", "the alert fires", PATIENCE_S)

        away = peer_of(compose, cut_off)
        (network,) = cut_off["NetworkSettings"]["Networks"]
        compose.docker("network", "disconnect", network, cut_off["Id"])
        until(lambda: away not in members(), "who is cut off is given up", PATIENCE_S)
        until_they_train(4, beyond=furthest())
        note("one was cut off, 4 train on")
        compose.docker("network", "connect", "--alias", "peer", network, cut_off["Id"])
        until_they_train(5, beyond=furthest())
        assert away in members()
        note("it is back, 5 train")

        until(lambda: status()["state"] == "finished", "the run is over", 1800.0)
        note("the run is over")
        finals = [last_words(compose, one) for one in (cut_off, *others)]
        check_what_was_learnt(finals)
        until(lambda: peer_lost(prometheus) is None, "the alert is resolved", PATIENCE_S)
        note("the alert is resolved")
        until(lambda: ended(compose), "peers have ended", PATIENCE_S)
        exits = {one["Name"]: one["State"]["ExitCode"] for one in ended(compose)}
        assert sorted(exits.values()) == [0] * 5 + [137], exits
    finally:
        (tmp_path / "logs").write_text(compose.docker("ps", "--all"))
        compose("down", "--volumes", "--remove-orphans")
    assert_nothing_is_left(compose)
    note("all is taken down")


def address_of(container: dict[str, Any]) -> str:
    (network,) = container["NetworkSettings"]["Networks"].values()
    address: str = network["IPAddress"]
    return address


def up(prometheus: Prometheus) -> set[str]:
    return {address for address, health in prometheus.targets().items() if health == "up"}


def peer_lost(prometheus: Prometheus) -> str | None:
    return prometheus.alerts().get("RelayswarmPeerLost")


def last_words(compose: Compose, container: dict[str, Any]) -> dict[str, Any]:
    """The line in which a peer tells that it is done."""

    def told() -> list[dict[str, Any]]:
        return [line for line in compose.log(container) if line["event"] == "peer_finished"]

    (line,) = until(told, f"{container['Name']} tells what it learnt", PATIENCE_S)
    return dict(line)


def check_what_was_learnt(finals: list[dict[str, Any]]) -> None:
    """Every peer is within 3 points of the same training in one place."""
    run = config.load(ROOT / "deploy/run.toml", list(SETTINGS))
    assert run.data.alpha == 1.0
    first = first_trainer(run, None, "cpu")
    baseline = train_centralized(first, run.peers * run.data.batch_size).metrics["accuracy"]
    assert baseline is not None
    accuracies = {one["peer"]: one["metrics"]["accuracy"] for one in finals}
    note(f"baseline {baseline:.1%}; " + ", ".join(f"{k} {v:.1%}" for k, v in accuracies.items()))
    assert len(accuracies) == 5
    assert all(one["steps"] == run.steps for one in finals)
    assert min(accuracies.values()) >= baseline - POINTS


def ended(compose: Compose) -> list[dict[str, Any]]:
    """All peers' containers, once none runs."""
    if compose.containers("peer"):
        return []
    return compose.containers("peer", dead=True)


def assert_nothing_is_left(compose: Compose) -> None:
    for what in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
        flags = ("--quiet", "--filter", "label=com.docker.compose.project")
        assert compose.docker(*what, *flags) == ""


def test_a_swarm_with_tls(environment: dict[str, str], tmp_path: Path) -> None:
    """Each container takes a certificate of its own; who has none is not answered."""
    certificates = ROOT / "certs"
    assert not certificates.exists(), "certs/ is in the way; move it elsewhere"
    compose = Compose(environment, tmp_path, "deploy/compose.mtls.yml")
    relayswarm = (sys.executable, "-m", "peer.cli")
    try:
        subprocess.run(
            (*relayswarm, "certs", str(certificates), "--peers", "5", "--host", "coordinator"),
            check=True,
        )
        for key in certificates.glob("*.key"):
            subprocess.run(("chown", "10001", str(key)), check=True)
        compose("up", "--detach", "coordinator", "peer")
        assert set(until_they_train(4)) == {f"peer-{k}" for k in range(4)}
        compose("up", "--detach", "--no-recreate", "--scale", "peer=5", "coordinator", "peer")
        assert set(until_they_train(5)) == {f"peer-{k}" for k in range(5)}
        note("5 peers train with TLS")
        leaver, *_ = compose.containers("peer")
        compose.docker("stop", "-t", str(GRACE_S), leaver["Id"])  # SIGTERM, later SIGKILL
        (ended,) = json.loads(compose.docker("inspect", leaver["Id"]))
        assert ended["State"]["ExitCode"] == 0
        until_they_train(4, beyond=furthest())
        note("one was told to end and has left, 4 train on")
        (coordinator,) = compose.containers("coordinator")
        until(lambda: is_healthy(compose), "all are healthy", PATIENCE_S)
        inside = ("exec", "-e", "RELAYSWARM_HEALTH_TLS_CA=", "-e", "RELAYSWARM_HEALTH_TLS_CERT=")
        inside += ("-e", "RELAYSWARM_HEALTH_TLS_KEY=", "-e", "RELAYSWARM_HEALTH_TLS_NAME=")
        with pytest.raises(subprocess.CalledProcessError) as refused:
            compose.docker(*inside, coordinator["Id"], "relayswarm", "health", "127.0.0.1:50050")
        assert "does not serve" in refused.value.stdout
    finally:
        compose("down", "--volumes", "--remove-orphans")
        for path in certificates.glob("*"):
            path.unlink()
        certificates.rmdir()
    assert_nothing_is_left(compose)


def is_healthy(compose: Compose) -> bool:
    found = (*compose.containers("coordinator"), *compose.containers("peer"))
    return all(one["State"]["Health"]["Status"] == "healthy" for one in found)
