"""A swarm over mTLS with join tokens, from its first word to its last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator.status import fetch
from peer.transport.read_model import read_model
from relayswarm.net.security import Security

OLD, NEW = "old-secret-0123456789", "new-secret-0123456789"


def flags(security: Security, tokens: Path) -> list[str]:
    files = {"ca": security.ca, "cert": security.cert, "key": security.key}
    given = [part for kind, file in files.items() for part in (f"--tls-{kind}", str(file))]
    return [*given, "--token-file", str(tokens)]


def test_a_swarm_trains_over_tls_and_takes_nobody_else_in(
    daemons: Callable[..., Any], certificates: Callable[..., Security], tmp_path: Path
) -> None:
    theirs, ours = tmp_path / "coordinator-tokens", tmp_path / "peer-tokens"
    theirs.write_text(OLD)
    ours.write_text(OLD)
    swarm = daemons(
        *("task.name=digits", "data.batch_size=8", "data.shards=3", "topology.graph=chain"),
        *("steps=60", "faults.delay_s=0.02"),
        start=False,
        flags=flags(certificates("coordinator"), theirs),
        peers=2,
    )

    def add(peer_id: str, certificate: str = "", tokens: Path = ours) -> Any:
        return swarm.add(peer_id, *flags(certificates(certificate or peer_id), tokens))

    impostor = add("peer-0", certificate="peer-2")
    assert impostor.exit_code() == 3
    assert "peer_id = 'peer-0': the certificate is that of peer-2" in impostor.log
    add("peer-0")
    address = add("peer-1").until("peer_started")["address"]
    swarm.until_step(5)
    theirs.write_text(f"{NEW}\n{OLD}")  # rotated: peers go on with the old one, a newcomer has
    new = tmp_path / "new-tokens"  # the new, and takes over the model of a donor over TLS
    new.write_text(NEW)
    late = add("peer-2", tokens=new)
    late.until_step(20)
    assert "starting from step" in late.log
    operator = certificates("operator", token_file=new)
    assert len(fetch(swarm.address, operator).members) == 3
    assert read_model(address, operator, peer_id="peer-1").peer_id == "peer-1"
    finished = swarm.finish()
    assert min(event["metrics"]["accuracy"] for event in finished.values()) > 0.8
