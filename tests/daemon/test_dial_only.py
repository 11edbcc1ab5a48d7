"""Peers that can only dial out: they advertise nothing, and take part as if they did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relayswarm.net.security import Security
from tests.daemon.test_algorithms import COMMON, assert_as_simulated
from tests.daemon.test_bit_identity import DIGITS, PATIENT, QUADRATICS, assert_identical
from tests.daemon.test_tls import flags
from tests.daemon.wires import free_port

DIAL_ONLY = ("--reachability", "dial-only")
STAR = "topology.graph=star"  # peer-0 in the middle

METHODS = {
    "relaysgd": (),
    "overlap, known losses": ("algorithm.overlap=true", "faults.drop=0.2"),
    "on the lattice, late, in any order, and twice": (
        "transport.wire_format=lattice",
        "faults.jitter_s=0.02",
        "faults.duplicate=0.3",
    ),
    "allreduce": ("algorithm.name=allreduce",),
    "gradient tracking": ("algorithm.name=gradient-tracking",),
}

SCRIPT = [
    ["peer-0", "peer-1", 2],
    ["peer-2", "peer-0", 1],
    ["peer-0", "peer-3", 3],
    ["peer-0", "peer-2", 1],
    ["peer-3", "peer-0", 2],
    ["peer-0", "peer-1", 1],
    ["peer-1", "peer-0", 2],
]
"""Who calls whom, and after how many local steps: whom nobody can dial is called four times."""


def add_all(swarm: Any, dial_only: range, *more: str, path: tuple[Path, ...] = ()) -> None:
    """Start all peers, those of `dial_only` without a port that others know."""
    for k in range(swarm.config.peers):
        given = DIAL_ONLY if k in dial_only else ()
        swarm.add(f"peer-{k}", *given, *more, path=path)


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_the_end_is_that_of_peers_with_ports(
    daemons: Callable[..., Any], settings: tuple[str, ...]
) -> None:
    """The simulator knows nothing of ports, and all messages of peers 1 to 3 go through peer 0."""
    swarm = daemons(*PATIENT, *QUADRATICS, STAR, *settings, start=False)
    add_all(swarm, range(1, 4))
    assert_identical(swarm)
    for k in range(1, 4):
        assert swarm.peers[f"peer-{k}"].until("peer_started")["address"] == ""


@pytest.mark.parametrize(
    "settings",
    [(), ("algorithm.blocking=true",), ("algorithm.quantize=lattice",)],
    ids=["plain", "blocking", "on the lattice"],
)
def test_pairs_end_as_with_ports(daemons: Callable[..., Any], settings: tuple[str, ...]) -> None:
    """Peer 0 makes its offers on streams that the others opened."""
    method = ("algorithm.name=swarmsgd", f"algorithm.options.script={SCRIPT}", *settings)
    swarm = daemons(*COMMON, STAR, *method, start=False)
    add_all(swarm, range(1, 4))
    assert_as_simulated(swarm)


def test_pairs_draw_partners_that_cannot_be_dialled(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*QUADRATICS, STAR, "algorithm.name=swarmsgd", start=False)
    add_all(swarm, range(1, 4))
    swarm.finish()
    assert all(len(swarm.steps(peer)) == 30 for peer in swarm.peers)
    assert max(event["models_counted"] for event in swarm.steps("peer-0").values()) == 2


def test_large_messages_are_collected_in_parts(
    daemons: Callable[..., Any], install: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = install(9000)  # 675,010 parameters: three chunks
    monkeypatch.syspath_prepend(str(theirs))
    swarm = daemons(*PATIENT, *DIGITS, STAR, "task.name=theirs", "steps=8", start=False, peers=3)
    add_all(swarm, range(1, 3), "--allow-task", "theirs", path=(theirs,))
    assert_identical(swarm)


def test_no_edge_is_between_two_of_them(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*QUADRATICS, "topology.graph=ring", "peers=6", start=False)
    add_all(swarm, range(2, 6))
    published = swarm.coordinator.until("topology")
    dial_only = {f"peer-{k}" for k in range(2, 6)}
    edges = [*published["edges"], *published["graph_edges"]]
    assert not [edge for edge in edges if set(edge) <= dial_only]
    assert "as some peers can only dial out" in published["detail"]
    swarm.finish()
    assert all(swarm.steps(peer)[29]["models_counted"] == 6 for peer in swarm.peers)


def test_a_swarm_without_anybody_who_can_be_dialled_ends_with_names_and_a_remedy(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*QUADRATICS, start=False)
    add_all(swarm, range(4))
    for process in (*swarm.peers.values(), swarm.coordinator):
        assert process.exit_code() == 3
        line = process.log.splitlines()[-1]
        assert "no tree of peer-0 peer-1 peer-2 peer-3: all of them can only dial out" in line
        assert "`relayswarm peer --role forward`" in line


def test_an_address_where_nobody_answers_is_noticed_when_joining(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*QUADRATICS, start=False)
    address = f"127.0.0.1:{free_port()}"
    lost = swarm.add("peer-0", "--advertise", address)
    assert lost.exit_code() == 3
    line = lost.log.splitlines()[-1]
    assert f"--advertise = '{address}': when the coordinator calls back nobody answers" in line
    assert "--reachability dial-only" in line


def test_an_address_of_a_peer_that_cannot_be_dialled(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*QUADRATICS, start=False)
    peer = swarm.add("peer-0", *DIAL_ONLY, "--advertise", "127.0.0.1:1")
    assert peer.exit_code() == 2
    assert "--advertise = '127.0.0.1:1': given, but" in peer.log


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("topology.tree=double-binary-trees", "set it to 'spanning-tree'"),
        ("topology.self_heal=true", "set it to false"),
        ("algorithm.name=sgp", "choose another one"),
    ],
)
def test_a_run_without_a_place_for_them(
    daemons: Callable[..., Any], setting: str, words: str
) -> None:
    swarm = daemons(*QUADRATICS, "topology.graph=complete", setting, start=False)
    peer = swarm.add("peer-0", *DIAL_ONLY)
    assert peer.exit_code() == 3
    assert words in peer.log.splitlines()[-1]


def test_a_newcomer_gets_its_model_from_who_can_be_dialled(daemons: Callable[..., Any]) -> None:
    swarm = daemons(
        *("task.name=digits", "data.batch_size=8", "data.shards=4", STAR),
        *("steps=120", "faults.delay_s=0.02"),
        start=False,
        peers=3,
    )
    add_all(swarm, range(1, 3))
    swarm.until_step(25)
    late = swarm.add("peer-3", *DIAL_ONLY)
    finished = swarm.finish()
    assert "of peer-0" in next(line for line in late.log.splitlines() if "starting from" in line)
    assert min(event["metrics"]["accuracy"] for event in finished.values()) > 0.8


def test_a_peer_without_data_is_enough_for_all_others_to_dial(daemons: Callable[..., Any]) -> None:
    digits = ("task.name=digits", "data.batch_size=8", "data.shards=3", "steps=60")
    swarm = daemons(*digits, STAR, start=False, peers=4)
    swarm.add("peer-0", "--role", "forward")
    for k in range(1, 4):
        swarm.add(f"peer-{k}", *DIAL_ONLY)
    finished = swarm.finish()
    accuracies = [finished[f"peer-{k}"]["metrics"]["accuracy"] for k in range(1, 4)]
    assert min(accuracies) > 0.8
    assert max(accuracies) - min(accuracies) < 0.05


def test_over_tls_a_peer_collects_what_is_its_own(
    daemons: Callable[..., Any], certificates: Callable[..., Security], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-secret-0123456789")
    swarm = daemons(
        *(*PATIENT, *QUADRATICS, STAR),
        start=False,
        flags=flags(certificates("coordinator"), tokens),
        peers=3,
    )
    for k in range(3):
        own = flags(certificates(f"peer-{k}"), tokens)
        swarm.add(f"peer-{k}", *(DIAL_ONLY if k else ()), *own)
    assert_identical(swarm)
