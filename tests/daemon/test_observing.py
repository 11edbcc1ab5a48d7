"""What can be seen of a running peer: its model, health, metrics, and evaluations."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from coordinator.status import fetch
from peer.transport.read_model import read_model
from peer.transport.remote_model import RemoteModel

PAIR = ("task.name=quadratics", "topology.graph=chain", "peers=2")
SERVICE = "relayswarm.peer.v1.PeerService"

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def started(process: Any) -> Mapping[str, Any]:
    event: Mapping[str, Any] = process.until("peer_started")
    return event


def scrape(address: str) -> Samples:
    """Values by sample name and labels; what is wrong with names fails here."""
    with urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        prefix = "(relayswarm_(peer|coordinator|member|exchanges)|process)"
        assert re.fullmatch(f"{prefix}(_[a-z]+)+|relayswarm_exchanges", family.name)
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)(_|$)", family.name), "base units"
        assert family.documentation.strip(), family.name
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name == f"{family.name}_total"
            samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def peer_value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"relayswarm_peer_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def lingering(daemons: Callable[..., Any]) -> Any:
    """A swarm whose peer-0 is done, and lingers because peer-1, which hangs, needs its messages."""
    return with_one_that_hangs(daemons, "steps=20")


def with_one_that_hangs(daemons: Callable[..., Any], *settings: str) -> Any:
    """A swarm of two, of which peer-1 hangs from some step on and peer-0 is done."""
    swarm = daemons(*PAIR, *settings, "faults.delay_s=0.02", "transport.deadline_s=0.5")
    swarm.until_step(3)
    swarm.peers["peer-1"].send(signal.SIGSTOP)
    swarm.peers["peer-0"].until("peer_finished")
    return swarm


def read_newer(peer: Any, than: int, last: int) -> RemoteModel:
    """A model of a later step: a snapshot stays as good as new for a while."""
    address = started(peer)["address"]
    for step in range(than + 5, last, 5):
        peer.until_step(step)
        model = read_model(address)
        if model.step > than:
            return model
    raise AssertionError(f"up to step {last} no model newer than of step {than}")


def test_a_model_can_be_read_at_any_time(daemons: Callable[..., Any]) -> None:
    steps = 120
    swarm = daemons(*PAIR, f"steps={steps}", "faults.delay_s=0.02", start=False)
    peer = swarm.add("peer-0")
    before = read_model(started(peer)["address"])
    assert (before.step, before.peer_id) == (0, "peer-0")
    assert torch.count_nonzero(before.vector) == 0  # where the task's model starts
    swarm.add("peer-1")
    first = read_newer(peer, 0, steps)
    second = read_newer(peer, first.step, steps)
    for model in (first, second):
        assert torch.isfinite(model.vector).all()
        assert torch.count_nonzero(model.vector) > 0
        assert model.state_dict().keys() == {"x"}
    swarm.finish()


def test_a_model_can_be_read_of_a_peer_that_never_waits(daemons: Callable[..., Any]) -> None:
    """Alone, it begins each step as soon as the last one is done."""
    slow = "faults.slow={peer-0 = 10}"
    swarm = daemons("task.name=quadratics", "steps=300", slow, peers=1)
    peer = swarm.peers["peer-0"]
    peer.until_step(5)
    assert 5 <= read_model(started(peer)["address"]).step < 300
    swarm.finish()


def test_a_finished_peer_serves_those_who_still_need_it(lingering: Any) -> None:
    """R9: it goes on serving, renews its lease, and says that it has finished."""
    peer = lingering.peers["peer-0"]
    final = read_model(started(peer)["address"])
    assert final.step == 20
    assert torch.equal(final.vector, lingering.model("peer-0")["x"])
    finished_at = peer.events("peer_finished")[0]["steps"]
    assert finished_at == 20
    lingering.poll(lambda: state_of(lingering, "peer-0") == "finished", "the coordinator knows")
    assert not peer.has_ended
    lingering.peers["peer-1"].send(signal.SIGCONT)
    lingering.finish()
    assert lingering.peers["peer-1"].step() == 19


def state_of(swarm: Any, peer_id: str) -> str | None:
    members = {m.member.peer_id: m.state for m in fetch(swarm.address).members}
    return members.get(peer_id)


def test_counters_agree_with_the_report(lingering: Any) -> None:
    peer = lingering.peers["peer-0"]
    report = peer.events("peer_finished")[0]
    samples = scrape(started(peer)["metrics_address"])
    steps = lingering.steps("peer-0").values()
    assert peer_value(samples, "steps_total") == 20 == len(steps)
    assert peer_value(samples, "step") == 20
    assert peer_value(samples, "swarm_size") == 2
    assert peer_value(samples, "messages_expected_total") == report["messages_expected"] == 20
    missed = sum(event["missed"] for event in steps)
    assert peer_value(samples, "messages_missed_total") == report["messages_missed"] == missed > 0
    assert peer_value(samples, "messages_used_late_total") == sum(event["late"] for event in steps)
    assert peer_value(samples, "messages_sent_total") == report["messages_sent"]
    assert peer_value(samples, "messages_received_total") == 20 - missed
    assert peer_value(samples, "step_seconds_count", phase="compute") == 20
    waited = sum(event["wait_s"] for event in steps)
    assert peer_value(samples, "step_seconds_sum", phase="wait") == pytest.approx(waited, abs=1e-4)
    assert peer_value(samples, "evaluation", metric="loss") == report["metrics"]["loss"]
    lingering.peers["peer-1"].send(signal.SIGCONT)
    lingering.finish()


def test_exchanges_are_counted_by_who_averaged(daemons: Callable[..., Any]) -> None:
    """With a partner that hangs some fail; every average of the report is one of `both`."""
    swarm = with_one_that_hangs(daemons, "algorithm.name=swarmsgd", "steps=150")
    peer = swarm.peers["peer-0"]
    report = peer.events("peer_finished")[0]
    ended = {
        dict(labels)["outcome"]: count
        for (name, labels), count in scrape(started(peer)["metrics_address"]).items()
        if name == "relayswarm_exchanges_total" and ("role", "initiator") in labels
    }
    averaged = report["messages_expected"] - report["messages_missed"]
    assert ended.pop("both") == averaged > 0
    assert ended.keys() <= {"partner_only", "none"}
    assert sum(ended.values()) > 0
    swarm.peers["peer-1"].send(signal.SIGCONT)
    swarm.finish()


def test_the_coordinator_counts_too(lingering: Any) -> None:
    samples = scrape(lingering.coordinator.until("coordinator_started")["metrics_address"])

    def value(name: str, **labels: str) -> float:
        return samples[f"relayswarm_coordinator_{name}", tuple(sorted(labels.items()))]

    assert value("joins_total") == value("members") == value("members_needed") == 2
    assert value("elections_total", reason="quorum") == value("epoch_number") == 1
    assert value("elections_total", reason="unreachable") == 0
    assert value("run_state", state="running") == 1
    assert value("epoch_members") == 2
    assert value("epoch_diameter_hops") == 1
    lingering.peers["peer-1"].send(signal.SIGCONT)
    lingering.finish()


def test_the_coordinator_passes_on_what_peers_tell(lingering: Any) -> None:
    """Whoever reaches the coordinator sees peers that he cannot reach, until they have left."""
    address = lingering.coordinator.until("coordinator_started")["metrics_address"]
    mine = {"run": "run", "peer": "peer-0"}
    own = scrape(started(lingering.peers["peer-0"])["metrics_address"])

    def told(name: str, **labels: str) -> float | None:
        return scrape(address).get((f"relayswarm_member_{name}", tuple(sorted(labels.items()))))

    lingering.poll(lambda: told("steps_total", **mine) == 20, "all steps are told")
    loss = told("evaluation", metric="loss", **mine)
    assert loss == peer_value(own, "evaluation", metric="loss")
    assert told("step_seconds_count", phase="compute", **mine) == 20
    assert told("process_resident_memory_bytes", **mine)
    lingering.peers["peer-1"].send(signal.SIGCONT)
    lingering.finish()
    assert told("info", **mine) is None
    assert told("steps_total", **mine) is None


def test_health_and_reflection(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*PAIR, start=False)
    plain = started(swarm.add("peer-0"))["address"]
    reflecting = started(swarm.add("peer-1", "--reflection"))["address"]
    for address in (plain, reflecting):
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", SERVICE):
                request = health_pb2.HealthCheckRequest(service=service)
                status = stub.Check(request, timeout=30).status
                assert status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE in services(reflecting)
    with pytest.raises(grpc.RpcError) as refused:
        services(plain)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def services(address: str) -> list[str]:
    """The names that a server tells by reflection."""
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=30)
        return [service.name for service in answer.list_services_response.service]


def test_evaluations_come_when_they_are_due_and_at_the_end(daemons: Callable[..., Any]) -> None:
    swarm = daemons("task.name=digits", "steps=12", "evaluation.every=5", peers=2)
    finished = swarm.finish()
    for peer, process in swarm.peers.items():
        evaluations = process.events("evaluation")
        assert [event["step"] for event in evaluations] == [5, 10, 12]
        assert all(event["metrics"].keys() == {"accuracy", "loss"} for event in evaluations)
        assert evaluations[-1]["metrics"] == finished[peer]["metrics"]
