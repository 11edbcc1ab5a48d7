"""A site with a law of its own among others: what it refuses and sends, and its record of that."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peer.audit import verify
from peer.transport.read_model import ReadModelError, read_model
from relayswarm.net.security import Security

RUN = ("task.name=digits", "data.batch_size=8", "topology.graph=chain", "data.shards=3")


def records(file: Path) -> list[dict[str, Any]]:
    """After a whole chain was followed."""
    lines = file.read_bytes().splitlines(keepends=True)
    assert verify(lines).torn_bytes == 0
    return [json.loads(line) for line in lines]


def flags(security: Security) -> list[str]:
    files = {"ca": security.ca, "cert": security.cert, "key": security.key}
    return [part for kind, file in files.items() for part in (f"--tls-{kind}", str(file))]


def law(folder: Path, text: str) -> list[str]:
    path = folder / f"site-{len(list(folder.glob('site-*')))}.toml"
    path.write_text(text, encoding="utf-8")
    return ["--site", str(path)]


def test_a_site_keeps_its_metrics_gives_its_model_to_neighbours_and_records_what_leaves(
    daemons: Callable[..., Any], certificates: Callable[..., Security], tmp_path: Path
) -> None:
    swarm = daemons(
        *(*RUN, "steps=25", "faults.delay_s=0.02", "evaluation.every=5"),
        start=False,
        flags=flags(certificates("coordinator")),
        peers=3,
    )
    strict = law(tmp_path, "[allow]\nmin_local_steps = 8")
    refused = swarm.add("peer-0", *flags(certificates("peer-0")), *strict)
    assert refused.exit_code() == 3
    demand = "algorithm.local_steps = 1: this site demands at least 8 (allow.min_local_steps"
    assert demand in refused.log
    (record,) = records(swarm.directory / "peer-0" / "audit.jsonl")
    assert (record["event"], record["reason"]) == ("refused", "law")
    assert demand in record["text"]

    own = law(tmp_path, '[allow]\nmin_swarm_size = 3\nmetrics = []\ntasks = ["digits"]')
    address = swarm.add("peer-0", *flags(certificates("peer-0")), *own).until("peer_started")
    for name in ("peer-1", "peer-2"):
        swarm.add(name, *flags(certificates(name)))
    swarm.until_step(3)
    for name in ("operator", "peer-2"):  # peer-2 is a member, two edges away
        with pytest.raises(ReadModelError, match="gives its model to neighbours"):
            read_model(address["address"], certificates(name), peer_id="peer-0")
    read = read_model(address["address"], certificates("peer-1"), peer_id="peer-0")
    finished = swarm.finish()

    assert finished["peer-0"]["metrics"]["accuracy"] > 0  # its own log and events have it
    for one in ("peer-1", "peer-2"):
        last = swarm.swarm_metrics(one)[25]
        assert (last["peers"], last["measured_by"]["accuracy"]) == (3, 2)
    left = records(swarm.directory / "peer-0" / "audit.jsonl")
    assert left[1]["event"] == "accepted"
    assert left[1]["task"] == "digits"
    sent = [record for record in left if record["event"] == "sent"]
    assert {record["known_by"] for record in sent} == {"certificate"}
    assert {record["receiver"] for record in sent} == {"peer-1"}
    steps = [record["step"] for record in sent if record["kind"] == "relay"]
    assert sorted(set(steps)) == list(range(25))
    (model,) = (record for record in sent if record["kind"] == "model")
    assert (model["step"], model["bytes"]) == (read.step, 4 * read.vector.numel())
    assert sum(r["count"] for r in left[2:] if r["event"] == "refused") == 2


def test_a_site_sends_nothing_while_the_swarm_is_too_small_and_trains_on(
    daemons: Callable[..., Any], tmp_path: Path
) -> None:
    swarm = daemons(
        *(*RUN, "steps=150", "faults.delay_s=0.02", "coordinator.lease_s=1"),
        start=False,
        peers=3,
    )
    swarm.add("peer-0", *law(tmp_path, "[allow]\nmin_swarm_size = 3"))
    swarm.add("peer-1")
    swarm.add("peer-2").until_step(5)
    swarm.peers.pop("peer-2").send(signal.SIGKILL)
    swarm.finish()
    log = swarm.peers["peer-0"].log
    assert "2 members, but this site demands at least 3" in log
    left = records(swarm.directory / "peer-0" / "audit.jsonl")
    (pause,) = (k for k, r in enumerate(left) if r["event"] == "refused")
    assert "training on alone, and sending nothing" in left[pause]["text"]
    epoch = left[pause]["text"].split()[1].rstrip(":")
    sent = [record for record in left if record["event"] == "sent"]
    assert sent
    assert epoch not in {record["epoch"] for record in sent}


def test_a_site_that_cannot_record_stops_sending_and_ends(
    daemons: Callable[..., Any], tmp_path: Path
) -> None:
    swarm = daemons(*RUN, "steps=4000", start=False, peers=2)
    full = swarm.add("peer-0", *law(tmp_path, '[audit]\nfile = "/dev/full"'))
    assert full.exit_code() == 5
    assert "/dev/full: what leaves cannot be recorded (No space left" in full.log
    swarm.add("peer-1")
    swarm.add("peer-0", *law(tmp_path, "")).until_step(5)
    (swarm.directory / "peer-0" / "audit.jsonl").unlink()
    assert swarm.peers["peer-0"].exit_code() == 5
    assert "changed or removed it), so nothing is sent any more" in swarm.peers["peer-0"].log
    assert swarm.add("peer-0", "--resume", *law(tmp_path, "")).until_step(6) is None
