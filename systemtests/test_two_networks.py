"""A peer outside the cluster's network, joined through the ports of a node. `make test-networks`.

Three network namespaces: pods, of which nobody outside has a route to any; a node, which forwards
its ports to them as Kubernetes' NodePorts do (DNAT, and its own address on what leaves); and a
machine outside. Addresses and ports are those of deploy/kustomize/overlays/outside. Needs root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from relayswarm.net.certificates import make_certificates
from systemtests.prometheus import until
from systemtests.switched import inside

ROOT = Path(__file__).parents[1]
PODS, NODE, OUTSIDE = "rs-pods", "rs-node", "rs-outside"
POD_IP, NODE_INSIDE = "10.203.1.2", "10.203.1.1"
NODE_IP, OUTSIDE_IP = "10.203.2.1", "10.203.2.2"
RELAYSWARM = (sys.executable, "-m", "peer.cli")
PEERS = 3
PATIENCE_S = 120.0
RUN = (f"peers={PEERS}", "steps=1000000", "topology.graph=complete", "data.shards=8")

pytestmark = pytest.mark.timeout(600)


def ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True)


def node_ports() -> dict[str, int]:
    """The node's port of each service of the overlay."""
    text = (ROOT / "deploy/kustomize/overlays/outside/services.yaml").read_text(encoding="utf-8")
    services = yaml.safe_load_all(text)
    return {one["metadata"]["name"]: one["spec"]["ports"][0]["nodePort"] for one in services}


@pytest.fixture
def networks() -> Iterator[None]:
    with ExitStack() as stack:
        for name in (PODS, NODE, OUTSIDE):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        for name, own, at_node in (
            (PODS, POD_IP, NODE_INSIDE),
            (OUTSIDE, OUTSIDE_IP, NODE_IP),
        ):
            end = f"to-{name}"
            ip("-n", NODE, "link", "add", end, "type", "veth", "peer", "eth0", "netns", name)
            for namespace, link, address in ((NODE, end, at_node), (name, "eth0", own)):
                ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
                ip("-n", namespace, "link", "set", link, "up")
        ip("-n", PODS, "route", "add", "default", "via", NODE_INSIDE)  # outside has none
        forward()
        yield


def forward() -> None:
    """What kube-proxy does."""
    rules = [("-A", "POSTROUTING", "-j", "MASQUERADE")]
    for number, (_, port) in enumerate(sorted(node_ports().items())):
        target = f"{POD_IP}:{50050 + number}"  # coordinator-outside, peer-0-outside, ...
        match = ("-d", NODE_IP, "-p", "tcp", "--dport", str(port))
        rules.append(("-A", "PREROUTING", *match, "-j", "DNAT", "--to-destination", target))
    for rule in rules:
        subprocess.run(inside(NODE, "iptables", "-t", "nat", *rule), check=True)
    subprocess.run(inside(NODE, "sysctl", "-qw", "net.ipv4.ip_forward=1"), check=True)


class Swarm:
    """Its processes, each in a namespace."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        hosts = [NODE_IP, POD_IP]
        make_certificates(folder, [*(f"peer-{k}" for k in range(PEERS)), "laptop"], hosts, days=1)

    def tls(self, who: str) -> tuple[str, ...]:
        files = {"ca": "ca.pem", "cert": f"{who}.pem", "key": f"{who}.key"}
        flags = ((f"--tls-{kind}", str(self._folder / file)) for kind, file in files.items())
        return tuple(word for pair in flags for word in pair)

    def start(self, namespace: str, who: str, *arguments: str) -> None:
        """Start a process in a namespace; its log is in the folder."""
        command = inside(namespace, *RELAYSWARM, *arguments, *self.tls(who))
        with (self._folder / f"{who}.log").open("w") as log:
            process = self._stack.enter_context(
                subprocess.Popen(
                    command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
            )
        self._stack.callback(process.kill)

    def status(self) -> dict[str, Any]:
        """As a person outside sees it."""
        command = ("status", "--coordinator", f"{NODE_IP}:{node_ports()['coordinator-outside']}")
        answer = ask(*command, "--json", *self.tls("laptop"))
        if answer.returncode != 0:
            raise ConnectionError(answer.stderr)
        found: dict[str, Any] = json.loads(answer.stdout)
        return found


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside."""
    command = inside(OUTSIDE, *RELAYSWARM, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.usefixtures("networks")
def test_a_peer_outside_joins_and_is_averaged_with(tmp_path: Path) -> None:
    ports = node_ports()
    with ExitStack() as stack:
        swarm = Swarm(stack, tmp_path)
        flags = [f"--set={one}" for one in RUN]
        swarm.start(PODS, "coordinator", "coordinator", "--listen", f"{POD_IP}:50050", *flags)
        for k in range(PEERS):
            at = ("--listen", f"{POD_IP}:{50051 + k}")
            port = ports[f"peer-{k}-outside"]
            reached = ("--advertise", f"{NODE_IP}:{port}", "--coordinator", f"{POD_IP}:50050")
            swarm.start(PODS, f"peer-{k}", "peer", "--id", f"peer-{k}", *at, *reached)
        until(lambda: all_average(swarm, PEERS), "those inside train", PATIENCE_S)

        at = ("--listen", f"{OUTSIDE_IP}:50051")
        where = ("--coordinator", f"{NODE_IP}:{ports['coordinator-outside']}")
        swarm.start(OUTSIDE, "laptop", "peer", "--id", "laptop", *at, *where)
        until(lambda: all_average(swarm, PEERS + 1), "the one outside trains too", PATIENCE_S)

        model = str(tmp_path / "model.safetensors")
        peer = ("--peer", f"{NODE_IP}:{ports['peer-1-outside']}", "--tls-name", "peer-1")
        assert ask("pull", *peer, "--output", model, *swarm.tls("laptop")).returncode == 0
        stranger = ("--tls-ca", str(tmp_path / "ca.pem"))  # without a certificate
        refused = ask("pull", *peer, "--output", model, *stranger)
        assert refused.returncode == 3, refused
        pod = ("--timeout", "3", f"{POD_IP}:50050", *swarm.tls("laptop"))
        assert ask("health", *pod).returncode == 3, "there is another way into the cluster"


def all_average(swarm: Swarm, count: int) -> bool:
    members = swarm.status()["members"]
    return len(members) == count and all(
        one["models_counted"] == count and one["step"] > 0 for one in members
    )
