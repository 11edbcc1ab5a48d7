"""What daemons know of the swarm's metrics: who tells, who is missing, and what is refused.

`test_bit_identity` and `test_algorithms` show that they know what the simulator says, `test_deaths`
that new epochs change nothing but who is there.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch
from xxhash import xxh3_64_intdigest

from coordinator.status import fetch
from peer.algorithms.core import Epoch, Head, Kind
from peer.codec import Format, encode
from peer.transport.contract import Contract, Span
from peer.transport.read_model import read_model
from peer.transport.wire import header
from relayswarm.coordinator.v1 import coordinator_pb2
from relayswarm.peer.v1 import peer_pb2 as pb
from relayswarm.peer.v1.peer_pb2_grpc import PeerServiceStub
from tests.daemon.test_observing import Samples, peer_value, scrape, started

QUADRATICS = ("task.name=quadratics", "topology.graph=chain", "faults.delay_s=0.02")


def test_every_peer_knows_the_mean_of_every_evaluation(daemons: Callable[..., Any]) -> None:
    """Ring of four: gossip, and metrics over its spanning tree. The digits have an accuracy."""
    settings = ("task.name=digits", "algorithm.name=dpsgd", "topology.graph=ring", "steps=9")
    swarm = daemons(*settings, "evaluation.every=4", peers=4)
    swarm.finish()
    for step in (4, 8, 9):
        values = [
            next(e["metrics"] for e in process.events("evaluation") if e["step"] == step)
            for process in swarm.peers.values()
        ]
        for peer in swarm.peers:
            known = swarm.swarm_metrics(peer)[step]
            assert known["peers"] == 4
            assert known["measured_by"] == {"loss": 4, "accuracy": 4}
            for name, mean in known["metrics"].items():
                assert mean == pytest.approx(sum(v[name] for v in values) / 4, rel=1e-12)
    status = fetch(swarm.address)
    assert {(m.swarm_metrics.step, m.swarm_metrics.peers) for m in status.members} == {(9, 4)}


def test_losses_make_means_of_fewer_peers_and_nobody_waits(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*QUADRATICS, "steps=60", "evaluation.every=3", "faults.drop=0.2", peers=4)
    swarm.finish()
    counts = [event["peers"] for p in swarm.peers for event in swarm.swarm_metrics(p).values()]
    assert len(counts) == 4 * 20
    assert set(counts) <= {1, 2, 3, 4}
    assert 0.2 * len(counts) < counts.count(4) < len(counts)
    assert max(e["wait_s"] for p in swarm.peers.values() for e in p.events("step")) < 20


@pytest.fixture
def lingering(daemons: Callable[..., Any]) -> Any:
    """A pair of which peer-1 hangs after a few steps, and peer-0 is done."""
    settings = ("steps=20", "evaluation.every=2", "transport.deadline_s=0.5")
    swarm = daemons(*QUADRATICS, *settings, peers=2)
    swarm.until_step(5)
    swarm.peers["peer-1"].send(signal.SIGSTOP)
    swarm.peers["peer-0"].until("swarm_metrics", lambda event: event["step"] == 20)
    yield swarm
    swarm.peers["peer-1"].send(signal.SIGCONT)
    swarm.finish()


def samples_of(swarm: Any, peer: str) -> Samples:
    return scrape(started(swarm.peers[peer])["metrics_address"])


def test_who_hangs_is_not_waited_for_and_the_count_tells(lingering: Any) -> None:
    known = lingering.swarm_metrics("peer-0")
    assert known[2]["peers"] == 2
    assert known[20]["peers"] == 1
    own = lingering.peers["peer-0"].events("peer_finished")[0]["metrics"]
    assert known[20]["metrics"] == own
    samples = samples_of(lingering, "peer-0")
    assert peer_value(samples, "swarm_metrics_step") == 20
    for metric, value in own.items():
        assert peer_value(samples, "swarm_metric", metric=metric) == value
        assert peer_value(samples, "swarm_metric_peers", metric=metric) == 1
        assert peer_value(samples, "swarm_metric_weight", metric=metric) == 1
    assert peer_value(samples, "metric_messages_received_total") >= 2  # of steps 2 and 4

    def seen() -> list[coordinator_pb2.MemberStatus]:
        members = fetch(lingering.address).members
        return [m for m in members if m.swarm_metrics.step == 20 and m.swarm_metrics.peers == 1]

    lingering.poll(seen, "the coordinator shows it")
    assert seen()[0].member.peer_id == "peer-0"


def test_sums_that_nobody_can_have_measured_are_refused_and_counted(lingering: Any) -> None:
    """As peer-1, which hangs, would have to send them to be believed."""
    address = started(lingering.peers["peer-0"])["address"]
    with grpc.insecure_channel(address) as channel:
        stub = PeerServiceStub(channel)
        state = stub.GetState(pb.GetStateRequest(), timeout=30)
        assert (state.swarm_metrics.step, state.swarm_metrics.peers) == (20, 1)
        lives = {m.member.peer_id: m.member.incarnation for m in fetch(lingering.address).members}
        epoch = Epoch(state.epoch.term, state.epoch.number, state.epoch.digest)
        names = ("loss", "suboptimality")
        head = Head("peer-1", lives["peer-1"], epoch, 18, Kind.METRIC, count=1, metrics=names)
        contract = Contract("run", read_model(address).fingerprint, 10, torch.float64)

        def verdict(*sums: float, **changes: Any) -> int:
            given = replace(head, **changes)
            data = bytes(encode(torch.tensor(sums, dtype=torch.float64), Format.FLOAT64))
            request = pb.RelayUnaryRequest(
                header=header(given, contract, [Span(0, 3)] * len(given.metrics)),
                trailer=pb.Trailer(xxh3=xxh3_64_intdigest(data)),
                data=data,
            )
            return stub.RelayUnary(request, timeout=30).response.verdict

        sound = (0.5, 1.0, 1.0)
        assert verdict(*sound, math.nan, 1.0, 1.0) == pb.VERDICT_NOT_FINITE
        assert verdict(*sound, math.inf, 1.0, 1.0) == pb.VERDICT_NOT_FINITE
        assert verdict(*sound, 0.5, -1.0, 1.0) == pb.VERDICT_BAD_METRIC
        assert verdict(*sound, 0.5, 1.0, 2.0) == pb.VERDICT_BAD_METRIC
        assert verdict(*sound, 0.5, 1.0, 0.5) == pb.VERDICT_BAD_METRIC
        assert verdict(*sound, *sound, count=2) == pb.VERDICT_BAD_COUNT
        assert verdict(*sound, *sound, metrics=("loss", "bliss")) == pb.VERDICT_BAD_METRIC
        many = tuple(f"metric {k}" for k in range(33))
        assert verdict(*(33 * sound), metrics=many) == pb.VERDICT_BAD_METRIC
        assert verdict(*sound, *sound, step=17) == pb.VERDICT_FOREIGN_RUN  # no evaluation then
        assert verdict(*sound, *sound) == pb.VERDICT_ACCEPTED
    samples = samples_of(lingering, "peer-0")
    assert peer_value(samples, "messages_refused_total", reason="bad_metric") == 5
    assert peer_value(samples, "messages_refused_total", reason="not_finite") == 2
    assert peer_value(samples, "messages_refused_total", reason="bad_count") == 1
    assert peer_value(samples, "swarm_metrics_step") == 20  # what was taken is of an older one
