"""The service on loopback: answers, status codes, streams of views."""

import io
import json
import math
import threading
from collections.abc import Callable
from functools import partial
from math import nan
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from rich.console import Console

from coordinator.conductor import Denied, Publication
from coordinator.members import Gone, Reason, RunFinished
from coordinator.service import SERVICE, CoordinatorServer
from coordinator.status import show, to_json
from relayswarm.config import parse
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.errors import ConfigError
from relayswarm.net.gate import Denial
from relayswarm.peer.v1.peer_pb2 import FORMAT_F32, FORMAT_LATTICE, SwarmMetric, SwarmMetrics

Serve = Callable[..., Any]
SHORT_LEASE = "[coordinator]\nlease_s = 0.6"


def code_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


# --- joining -------------------------------------------------------------------------------------


def test_a_peer_joins_first_as_a_candidate_then_as_a_member(serve: Serve) -> None:
    running = serve("peers = 2\nseed = 5")
    candidate = running.join(model_fingerprint=0, advertised_address="")
    assert (candidate.peer_id, candidate.shard, candidate.run_id) == ("peer-0", 0, "run")
    assert (candidate.protocol_version, candidate.lease_ms) == (1, 10_000)
    assert parse(candidate.run_config) == parse("peers = 2\nseed = 5")
    assert list(candidate.donors) == []
    assert running.join("peer-0").shard == 0
    assert running.conductor.membership.present == ("peer-0",)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"min_protocol_version": 9, "max_protocol_version": 9}, "FAILED_PRECONDITION"),
        ({"run_id": "other"}, "FAILED_PRECONDITION"),
        ({"model_fingerprint": 1}, "FAILED_PRECONDITION"),
        ({"advertised_address": ""}, "INVALID_ARGUMENT"),
        ({"peer_id": "no spaces"}, "INVALID_ARGUMENT"),
        ({"advertised_address": "127.0.0.1:10000"}, "ALREADY_EXISTS"),
        ({"peer_id": "peer-0", "incarnation": 1}, "ALREADY_EXISTS"),
    ],
)
def test_refusals_have_a_code_and_words(
    serve: Serve, changes: dict[str, object], code: str
) -> None:
    running = serve("peers = 3")
    running.join("peer-0", incarnation=2)
    got, words = code_of(
        lambda: (
            running.join("peer-1", **changes)
            if "peer_id" not in changes
            else running.join(**changes)
        )
    )
    assert got is grpc.StatusCode[code]
    assert ";" in words  # a remedy


def test_who_does_not_know_the_runs_wire_format_is_refused(serve: Serve) -> None:
    running = serve('transport.wire_format = "lattice"')
    for formats in ([], [FORMAT_F32, 77]):
        code, words = code_of(partial(running.join, "peer-0", formats=formats))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "transport.wire_format = 'lattice'" in words
    assert running.join("peer-0", formats=[FORMAT_LATTICE]).peer_id == "peer-0"


# --- leases --------------------------------------------------------------------------------------


def test_only_members_renew_and_only_of_this_run(serve: Serve) -> None:
    running = serve("peers = 2")
    running.join("peer-0")
    assert running.renew("peer-0").lease_ms == 10_000
    assert code_of(lambda: running.renew("peer-9"))[0] is grpc.StatusCode.NOT_FOUND
    assert code_of(lambda: running.renew("peer-0", incarnation=2))[0] is grpc.StatusCode.NOT_FOUND
    code, words = code_of(lambda: running.renew("peer-0", run_id="other"))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "'other'" in words


def test_a_lease_that_runs_out_ends_the_membership_and_the_watch(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(f"peers = 1\n{SHORT_LEASE}")
    now = running.conductor.now()
    with monkeypatch.context() as still:  # time is, for it takes some to get there
        still.setattr(running.conductor, "_clock", lambda: now)
        running.join("peer-0")
        stream = running.watch("peer-0")
        assert running.view(stream).reason == "quorum"
    assert running.await_notice(Gone).reason is Reason.LEASE_EXPIRED
    assert code_of(lambda: next(stream))[0] is grpc.StatusCode.NOT_FOUND
    assert code_of(lambda: running.renew("peer-0"))[0] is grpc.StatusCode.NOT_FOUND


def test_leaving_twice_is_no_error(serve: Serve) -> None:
    running = serve("peers = 1")
    running.join("peer-0")
    running.await_notice(Publication)
    running.leave("peer-0", finished=True)
    running.await_notice(RunFinished)
    running.leave("peer-0", finished=True)
    assert code_of(lambda: running.join("peer-1"))[0] is grpc.StatusCode.FAILED_PRECONDITION


# --- watching ------------------------------------------------------------------------------------


def test_a_member_hears_who_is_awaited_and_then_its_view(serve: Serve) -> None:
    running = serve("peers = 2\n[topology]\ngraph = 'chain'")
    running.join("peer-0")
    stream = running.watch("peer-0")
    waiting = next(stream).waiting
    assert (waiting.present, waiting.needed) == (1, 2)
    running.join("peer-1", incarnation=4)
    view = running.view(stream)
    assert (view.epoch.number, view.effective_step, view.reason) == (1, 0, "quorum")
    assert view.epoch.term > 1_700_000_000  # the coordinator's start, as it has no file
    assert view.epoch.digest != 0
    assert [(m.peer_id, m.incarnation, m.address) for m in view.members] == [
        ("peer-0", 1, "127.0.0.1:10000"),
        ("peer-1", 4, "127.0.0.1:10001"),
    ]
    (tree,) = view.trees
    assert [(k.peer_id, k.behind) for k in tree.neighbours] == [("peer-1", 1)]
    assert [(e.from_peer_id, e.to_peer_id) for e in tree.edges] == [("peer-0", "peer-1")]
    assert list(view.neighbours) == ["peer-1"]
    assert [(w.peer_id, w.weight) for w in view.mixing] == [("peer-0", 0.5), ("peer-1", 0.5)]
    assert (view.diameter, view.lr_factor) == (1, "1")


def test_each_change_brings_a_view_to_those_who_stay(serve: Serve) -> None:
    running = serve("peers = 3\n[topology]\ngraph = 'ring'")
    for peer in ("peer-0", "peer-1", "peer-2"):
        running.join(peer)
    stream = running.watch("peer-0")
    first = running.view(stream)
    running.leave("peer-1")
    second = running.view(stream)
    assert second.reason == "left peer-1"
    assert [m.peer_id for m in second.members] == ["peer-0", "peer-2"]
    assert (second.epoch.term, second.epoch.number) == (first.epoch.term, 2)
    assert second.epoch.digest != first.epoch.digest


def test_who_comes_late_to_its_watch_gets_the_present_view(serve: Serve) -> None:
    running = serve("peers = 1")
    running.join("peer-0")
    running.await_notice(Publication)
    assert running.view(running.watch("peer-0")).epoch.number == 1


def test_strangers_do_not_watch(serve: Serve) -> None:
    running = serve("peers = 2")
    running.join("peer-0")
    for wrong in ({"peer": "peer-1"}, {"peer": "peer-0", "incarnation": 9}):
        code, words = code_of(lambda wrong=wrong: next(running.watch(**wrong)))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "join again" in words


def test_a_second_watch_of_a_member_ends_the_first(serve: Serve) -> None:
    running = serve("peers = 2")
    running.join("peer-0")
    first = running.watch("peer-0")
    assert next(first).waiting.present == 1
    second = running.watch("peer-0")
    assert next(second).waiting.present == 1
    assert code_of(lambda: next(first))[0] is grpc.StatusCode.ABORTED


def test_many_watches_leave_room_for_calls(serve: Serve) -> None:
    running = serve("peers = 48\n[topology]\ngraph = 'ring'")
    streams = {}
    for k in range(48):
        running.join(f"peer-{k}")
        streams[f"peer-{k}"] = running.watch(f"peer-{k}")
    views = [running.view(stream) for stream in streams.values()]
    assert {view.epoch.number for view in views} == {1}
    assert running.renew("peer-7").lease_ms == 10_000


def test_a_peer_that_hangs_up_gives_its_thread_back(serve: Serve) -> None:
    running = serve("peers = 1")
    running.join("peer-0")
    free = threading.Event()
    watch = running.conductor.watch

    def watched(*args: Any) -> Any:
        try:
            yield from watch(*args)
        finally:
            free.set()

    running.conductor.watch = watched
    stream = running.watch("peer-0")
    running.view(stream)
    stream.cancel()
    assert free.wait(20.0)


def test_a_coordinator_that_stops_ends_its_watches_as_unavailable(serve: Serve) -> None:
    running = serve("peers = 1")
    running.join("peer-0")
    stream = running.watch("peer-0")
    running.view(stream)
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    assert code_of(lambda: next(stream))[0] is grpc.StatusCode.UNAVAILABLE
    stopping.join(20.0)
    assert not stopping.is_alive()


# --- status, health, reflection, sockets ---------------------------------------------------------


def test_status_while_waiting_and_running(serve: Serve) -> None:
    running = serve("peers = 2")
    running.join("peer-0", metrics_address="127.0.0.1:9")
    status = running.stub.GetStatus(pb.GetStatusRequest())
    assert (status.run_id, status.state, status.needed) == ("run", "waiting", 2)
    assert status.epoch.number == 0
    running.join("peer-1")
    running.await_notice(Publication)
    running.renew("peer-1", step=7, loss=0.25, state="averaging", models_counted=2, steps_per_s=1.5)
    running.leave("peer-0", finished=True)
    status = running.stub.GetStatus(pb.GetStatusRequest())
    assert (status.state, status.epoch.number, status.reason[:6]) == ("running", 1, "quorum")
    assert [m.member.peer_id for m in status.members] == ["peer-0", "peer-1"]
    done, going = status.members
    assert (done.state, done.metrics_address) == ("finished", "127.0.0.1:9")
    assert (going.step, going.loss, going.state, going.models_counted, going.shard) == (
        7, 0.25, "averaging", 2, 1,
    )  # fmt: skip
    assert going.steps_per_s == 1.5
    assert 0 <= going.last_seen_s < 20
    assert [(e.from_peer_id, e.to_peer_id) for e in status.trees[0].edges] == [("peer-0", "peer-1")]
    assert parse(status.run_config) == parse("peers = 2")


def test_progress_is_the_mean_of_all_steps_also_of_those_who_have_finished(serve: Serve) -> None:
    running = serve("peers = 2\nsteps = 100")
    running.join("peer-0")
    running.join("peer-1")
    views = running.watch("peer-0")
    assert running.view(views).progress == 0.0
    assert running.renew("peer-0", step=100).progress == 50.0
    running.leave("peer-0", finished=True)
    assert running.renew("peer-1", step=11).progress == 55.5
    running.join("peer-2", step=11, advertised_address="127.0.0.1:9999")
    later = running.watch("peer-2")
    assert running.view(later).progress == (100 + 11 + 11) / 3  # before it trains


def test_what_members_know_of_the_swarm_is_kept_within_bounds(serve: Serve) -> None:
    running = serve("peers = 1")
    running.join("peer-0")
    running.await_notice(Publication)
    many = [SwarmMetric(name=f"{k}" * 99, mean=k, weight=2, peers=1) for k in range(40)]
    running.renew("peer-0", swarm_metrics=SwarmMetrics(step=9, peers=1, metrics=many))
    (member,) = running.stub.GetStatus(pb.GetStatusRequest()).members
    kept = member.swarm_metrics
    assert (kept.step, kept.peers, len(kept.metrics)) == (9, 1, 32)
    assert kept.metrics[7] == SwarmMetric(name="7" * 64, mean=7, weight=2, peers=1)
    running.renew("peer-0")
    (member,) = running.stub.GetStatus(pb.GetStatusRequest()).members
    assert not member.HasField("swarm_metrics")


def test_a_members_last_evaluation_is_kept_within_bounds_and_beyond_its_end(serve: Serve) -> None:
    running = serve("peers = 1")
    running.join("peer-0")
    running.await_notice(Publication)
    values = [("a", 1, 0), ("a", 2, 1), ("n" * 65, 1, 1), ("\n", 1, 1), ("", 1, 1), ("b", nan, 1)]
    values += [("c", 1, nan), ("d", 1, -1), ("e", -1.5, 3), *((f"{k}", 1, 1) for k in range(40))]
    metrics = [pb.EvaluatedMetric(name=n, value=v, weight=w) for n, v, w in values]
    running.renew("peer-0", evaluation=pb.Evaluation(step=9, metrics=metrics))
    running.leave("peer-0", finished=True)
    (member,) = running.stub.GetStatus(pb.GetStatusRequest()).members
    kept = member.evaluation
    assert (member.state, kept.step, len(kept.metrics)) == ("finished", 9, 32)
    told = [(one.name, one.value, one.weight) for one in kept.metrics[:3]]
    assert told == [("a", 1, 0), ("e", -1.5, 3), ("0", 1, 1)]


def test_health_is_served(serve: Serve) -> None:
    running = serve()
    stub = health_pb2_grpc.HealthStub(running.channel)
    for name in ("", SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("wanted", [True, False])
def test_reflection_is_served_on_request(serve: Serve, wanted: bool) -> None:
    running = serve(reflection=wanted)
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = stub.ServerReflectionInfo(iter([question]))
    if wanted:
        services = [s.name for s in next(answers).list_services_response.service]
        assert SERVICE in services
    else:
        assert code_of(lambda: next(answers))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_port_that_is_taken_is_an_error(serve: Serve) -> None:
    running = serve()
    with pytest.raises(ConfigError, match=r"--listen.*taken.*port 0"):
        CoordinatorServer(running.conductor, running.server.address)


@pytest.mark.parametrize("listen", ["50050", "localhost:", ":1", "localhost:70000", "a:b"])
def test_an_address_that_is_none_is_an_error(serve: Serve, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"--listen.*HOST:PORT"):
        CoordinatorServer(serve().conductor, listen)


# --- hostile members ------------------------------------------------------------------------------


def test_nobody_ends_the_watch_of_another_life(serve: Serve) -> None:
    """A watch that has been superseded is not taken up again: its peer would never hear of a new
    epoch."""
    running = serve("peers = 1")
    running.join("peer-0")
    mine = running.watch("peer-0")
    first = running.view(mine)
    code, _ = code_of(lambda: next(running.watch("peer-0", incarnation=2)))
    assert code is grpc.StatusCode.NOT_FOUND
    running.join("peer-1")
    assert running.view(mine).epoch.number > first.epoch.number


def test_no_step_is_beyond_the_last(serve: Serve) -> None:
    """Larger ones would not fit the epoch's message, or keep everyone waiting for it."""
    running = serve("peers = 2\nsteps = 50")
    running.join("peer-0", step=2**64 - 1)
    running.join("peer-1")
    assert running.view(running.watch("peer-1")).effective_step == 50
    running.renew("peer-1", step=2**64 - 1)
    assert running.stub.GetStatus(pb.GetStatusRequest()).members[1].step == 50


def test_words_of_members_are_shown_only_if_they_are_known_ones(serve: Serve) -> None:
    """They end up in terminals, in JSON and on a page."""
    running = serve("peers = 1")
    running.join("peer-0")
    swarm = SwarmMetrics(step=1, peers=1)
    for name, weight in (("loss", 1.0), ("\x1b[2J", 1.0), ("inf", math.inf), ("nan", math.nan)):
        swarm.metrics.add(name=name, mean=0.5, weight=weight, peers=1)
    running.renew("peer-0", state="[/bold]\x1b[2J", swarm_metrics=swarm)
    status = running.stub.GetStatus(pb.GetStatusRequest())
    assert status.members[0].state == "unknown"
    assert [metric.name for metric in status.members[0].swarm_metrics.metrics] == ["loss"]
    show(status, Console(file=io.StringIO()))
    json.loads(to_json(status), parse_constant=pytest.fail)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_whole_addresses_are_shown_in_a_terminal_of_any_width(width: int) -> None:
    """For `relayswarm pull --peer`."""
    member = pb.MemberStatus(
        member=pb.Member(peer_id="peer-10", address="peer-10.example.org:50051"),
        step=123456,
        loss=0.000321,
        steps_per_s=0.0123,
        models_counted=16,
        state="averaging",
    )
    shown = io.StringIO()
    show(pb.GetStatusResponse(run_id="run", members=[member]), Console(file=shown, width=width))
    (row,) = [line for line in shown.getvalue().splitlines() if "peer-10" in line]
    words = "peer-10 0 123456 0.0123 0.000321 16 averaging 0.0 s peer-10.example.org:50051"
    assert row.split() == words.split()


@pytest.mark.parametrize("call", ["RenewLease", "Leave", "WatchTopology"])
def test_a_foreign_run_is_refused_and_counted_in_a_few_words(serve: Serve, call: str) -> None:
    running, told = serve("peers = 1"), []
    running.conductor.listeners.append(told.append)
    request = {"RenewLease": pb.RenewLeaseRequest, "Leave": pb.LeaveRequest}.get(
        call, pb.WatchTopologyRequest
    )(run_id="x" * 60_000, peer_id="peer-0")

    def ask() -> None:
        answer = getattr(running.stub, call)(request)
        if call == "WatchTopology":
            next(answer)

    code, text = code_of(ask)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert len(text) < 1000
    assert [n.denial for n in told if isinstance(n, Denied)] == [Denial.RUN]


@pytest.mark.parametrize("field", ["peer_id", "run_id", "advertised_address"])
def test_words_without_end_are_not_repeated(serve: Serve, field: str) -> None:
    code, text = code_of(lambda: serve().join(**{field: "x" * 60_000}))
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert len(text) < 1000


def test_a_request_larger_than_any_honest_one_is_not_read(serve: Serve) -> None:
    code, _ = code_of(lambda: serve().join(metrics_address="x" * 70_000))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
