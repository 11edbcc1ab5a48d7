"""A peer's line to the real coordinator on loopback, through refusals, absences and restarts."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.conductor import Conductor, Publication
from coordinator.member_metrics import EvaluatedMetric, Evaluation
from coordinator.members import Gone, Reason, RunFinished, SwarmMetric, SwarmMetrics
from coordinator.service import CoordinatorServer
from coordinator.store import Store
from peer.algorithms.core import Epoch, View
from peer.algorithms.metric_relay import Sum, SwarmMean
from peer.transport.contract import PeerState
from peer.transport.coordinator_client import (
    CoordinatorClient,
    Donor,
    JoinInfo,
    Renewal,
    RunOverError,
)
from peer.transport.topology_watch import TopologyWatch, to_view
from relayswarm.config import parse
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.errors import ConfigError, ExitCode, JoinError, RelayswarmError
from tests.daemon.wires import free_port

PATIENCE_S = 20.0
CHAIN = "[topology]\ngraph = 'chain'"


class Coordinator:
    """A coordinator that can be stopped and started again at its address."""

    def __init__(self, text: str, path: Path | None) -> None:
        self._config, self._path = parse(text), path
        self.address = "127.0.0.1:0"
        self.notices: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.start()

    def start(self) -> None:
        self._store = Store(self._path)
        self.conductor = Conductor(self._config, self._store)
        self.conductor.listeners.append(self.notices.put)
        self._server = CoordinatorServer(self.conductor, self.address)
        self.address = self._server.address
        self._server.start()
        self.conductor.start()
        self.running = True

    def stop(self) -> None:
        if self.running:
            self._server.stop()
            self._store.close()
        self.running = False

    def await_notice(self, kind: type) -> Any:
        while not isinstance(notice := self.notices.get(timeout=PATIENCE_S), kind):
            pass
        return notice


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def start(stack: ExitStack) -> Callable[..., Coordinator]:
    def started(text: str = "", path: Path | None = None) -> Coordinator:
        coordinator = Coordinator(text, path)
        stack.callback(coordinator.stop)
        return coordinator

    return started


@pytest.fixture
def line(stack: ExitStack) -> Callable[[str], CoordinatorClient]:
    return lambda address: stack.enter_context(closing(CoordinatorClient(address)))


class Views:
    """What a watch hands out."""

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self.views: queue.SimpleQueue[tuple[View, dict[str, str]]] = queue.SimpleQueue()
        self.no_tree: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.failed: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_view": lambda *view: self.views.put(view),
            "on_waiting": lambda *counts: self.waiting.put(counts),
            "on_no_tree": self.no_tree.put,
            "on_failed": self.failed.put,
        }

    def next_view(self) -> View:
        return self.views.get(timeout=PATIENCE_S)[0]


def renewal(number: int, epoch: Epoch | None = None, **state: Any) -> Renewal:
    told = {"step": 0, "state": "training"} | state
    return Renewal(3, PeerState(f"peer-{number}", 3, epoch or Epoch(), **told))


def info(number: int, **fields: Any) -> JoinInfo:
    known = {"peer_id": f"peer-{number}", "address": f"127.0.0.1:{7000 + number}"}
    return JoinInfo(**({"incarnation": 3, "fingerprint": 9} | known | fields))


def join_and_watch(client: CoordinatorClient, number: int, **fields: Any) -> Views:
    joined, views = client.join(info(number, **fields)), Views()
    client.watch(joined.peer_id, 3, **views.callbacks())
    return views


# --- evaluations ---------------------------------------------------------------------------------


def test_members_hear_what_others_measured_also_of_those_that_have_left(
    start: Any, line: Any
) -> None:
    coordinator = start("peers = 2")
    clients = [line(coordinator.address) for _ in range(2)]
    for number, client in enumerate(clients):
        client.join(info(number))
    coordinator.await_notice(Publication)
    measured = Evaluation(7, (EvaluatedMetric("loss", 0.1, 3.0),))
    clients[1].renew(replace(renewal(1, state="finished"), evaluation=measured))
    assert clients[0].evaluations() == {"peer-0": None, "peer-1": measured}
    clients[1].leave("peer-1", 3, finished=True)
    assert clients[0].evaluations() == {"peer-0": None, "peer-1": measured}
    coordinator.stop()
    assert clients[0].evaluations() is None


# --- joining -------------------------------------------------------------------------------------


def test_join_as_candidate_then_as_member(start: Any, line: Any) -> None:
    coordinator = start("peers = 2\nseed = 4\n[coordinator]\nlease_s = 5")
    client = line(coordinator.address)
    candidate = client.join(JoinInfo(incarnation=3))
    assert (candidate.peer_id, candidate.shard, candidate.lease_s) == ("peer-0", 0, 5.0)
    assert (candidate.run_id, candidate.protocol_version) == ("run", 1)
    assert (candidate.donors, parse(candidate.run_config).seed) == ((), 4)
    assert client.join(info(0)).peer_id == "peer-0"
    assert coordinator.conductor.membership.present == ("peer-0",)


def test_a_newcomer_is_told_its_donors(start: Any, line: Any) -> None:
    coordinator = start("peers = 1")
    client = line(coordinator.address)
    client.join(info(0))
    coordinator.await_notice(Publication)
    assert client.join(info(1)).donors == (Donor("peer-0", "127.0.0.1:7000"),)


def test_of_several_addresses_the_one_that_answers_counts(
    start: Any, line: Any, tmp_path: Path
) -> None:
    """Two coordinators with one store; as long as one leads, the other does not listen."""
    text = "peers = 1\n" + CHAIN
    first = start(text, tmp_path / "store.db")
    second_address = f"127.0.0.1:{free_port()}"
    client = line(f"127.0.0.1:{free_port()},{first.address},{second_address}")
    views = join_and_watch(client, 0)
    before = views.next_view().epoch
    assert client.renew(renewal(0, before)) == first.conductor.rules.lease_s
    first.stop()
    client.renew(renewal(0, before))
    assert client.is_away
    first.address = second_address
    first.start()
    deadline = time.monotonic() + PATIENCE_S
    while client.renew(renewal(0, before)) is not None:  # it does not know us yet
        assert time.monotonic() < deadline
    assert not client.is_away
    client.join(info(0, known_epoch=before))
    client.watch("peer-0", 3, **views.callbacks())
    while views.views.empty() and time.monotonic() < deadline:
        client.renew(renewal(0, before))
    assert views.next_view().epoch.age > before.age


def test_the_swarms_progress_comes_with_views_and_answers(start: Any, line: Any) -> None:
    coordinator = start("peers = 1")
    client = line(coordinator.address)
    told: list[float] = []
    client.join(info(0, step=7))
    views = Views()
    client.watch("peer-0", 3, **views.callbacks(), on_progress=told.append)
    views.next_view()
    assert told == [7.0]
    client.renew(renewal(0, step=9), told.append)
    assert told == [7.0, 9.0]
    coordinator.stop()
    client.renew(renewal(0, step=11), told.append)
    assert told == [7.0, 9.0]  # no answer says nothing


def test_each_of_several_addresses_must_be_one() -> None:
    with pytest.raises(ConfigError, match="--coordinator"):
        CoordinatorClient("127.0.0.1:50050,localhost")


def test_a_refusal_has_the_coordinators_words(start: Any, line: Any) -> None:
    coordinator = start()
    client = line(coordinator.address)
    with pytest.raises(JoinError, match=r"run_id = 'mine'.*serves the run 'run'") as caught:
        client.join(info(0, run_id="mine"))
    assert caught.value.exit_code is ExitCode.COULD_NOT_JOIN
    assert coordinator.address in str(caught.value)


def test_who_has_done_all_steps_is_told_so_from_other_refusals(start: Any, line: Any) -> None:
    coordinator = start()
    client = line(coordinator.address)
    client.join(info(0))
    client.leave("peer-0", 3, finished=True)
    with pytest.raises(RunOverError, match="has done all steps"):
        client.join(info(0, incarnation=4))
    with pytest.raises(JoinError) as caught:
        client.join(info(0, run_id="mine"))
    assert not isinstance(caught.value, RunOverError)


def test_a_coordinator_that_never_answers_is_named(start: Any, line: Any) -> None:
    coordinator = start()
    coordinator.stop()
    with pytest.raises(JoinError, match=r"no coordinator answered within 0\.3 s") as caught:
        line(coordinator.address).join(info(0), patience_s=0.3)
    assert coordinator.address in str(caught.value)


def test_an_address_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="--coordinator"):
        CoordinatorClient("nonsense")


def test_a_coordinator_that_comes_late_is_waited_for(
    start: Any, line: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "relayswarm.peer")
    coordinator = start()
    coordinator.stop()
    client = line(coordinator.address)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(client.join, info(0), PATIENCE_S)
        coordinator.start()
        assert joined.result(PATIENCE_S).peer_id == "peer-0"


def test_closing_the_line_ends_a_wait(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relayswarm.peer")
    coordinator = start()
    coordinator.stop()
    client = CoordinatorClient(coordinator.address)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(client.join, info(0), PATIENCE_S)
        client.close()
        with pytest.raises(JoinError, match="stopped"):
            joined.result(PATIENCE_S)


def test_another_service_is_recognised(line: Any, stack: ExitStack) -> None:
    server = grpc.server(stack.enter_context(ThreadPoolExecutor(1)))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stack.callback(lambda: server.stop(None).wait())
    with pytest.raises(JoinError, match="no relayswarm coordinator"):
        line(f"127.0.0.1:{port}").join(info(0))


# --- leases --------------------------------------------------------------------------------------


def test_a_renewal_reports_and_returns_the_lease(start: Any, line: Any) -> None:
    coordinator = start("[coordinator]\nlease_s = 4")
    client = line(coordinator.address)
    client.join(info(0))
    epoch = Epoch(1, 2, 3)
    known = SwarmMean(5, 2, {"loss": Sum(3.0, 6.0, 2)})
    unreachable = frozenset({"peer-1"})
    state = PeerState("peer-0", 3, epoch, 7, "averaging", 0.5, 4, 2.5, known)
    assert client.renew(Renewal(3, state, unreachable)) == 4.0
    member = coordinator.conductor.membership.members["peer-0"]
    assert (member.progress.step, member.loss, member.state) == (7, 0.5, "averaging")
    assert (member.models_counted, member.unreachable) == (4, {"peer-1"})
    assert member.steps_per_s == 2.5
    assert member.swarm == SwarmMetrics(5, 2, (SwarmMetric("loss", 0.5, 6.0, 2),))


def test_a_lease_that_has_run_out_is_no_lease(start: Any, line: Any) -> None:
    coordinator = start("peers = 1\n[coordinator]\nlease_s = 0.3")
    client = line(coordinator.address)
    client.join(info(0))
    coordinator.await_notice(Gone)
    assert client.renew(renewal(0)) is None


def test_a_coordinator_that_is_away_changes_nothing(
    start: Any, line: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "relayswarm.peer")
    coordinator = start("[coordinator]\nlease_s = 4")
    client = line(coordinator.address)
    client.join(info(0))
    coordinator.stop()
    assert client.renew(renewal(0)) == 4.0
    assert client.renew(renewal(0)) == 4.0
    away = [r for r in caplog.records if "going on without it" in r.message]
    assert len(away) == 1


# --- views ---------------------------------------------------------------------------------------


def test_views_arrive_as_algorithms_know_them(start: Any, line: Any) -> None:
    coordinator = start(f"peers = 4\n{CHAIN}")
    clients = [line(coordinator.address) for _ in range(4)]
    watches = [join_and_watch(client, k) for k, client in enumerate(clients)]
    view, addresses = watches[1].views.get(timeout=PATIENCE_S)
    elected = coordinator.await_notice(Publication)
    assert view == View(
        epoch=Epoch(elected.elected.term, 1, elected.digest),
        effective_step=0,
        me="peer-1",
        members={f"peer-{k}": 3 for k in range(4)},
        trees=({"peer-0": 1, "peer-2": 2},),
        neighbours=("peer-0", "peer-2"),
        mixing={"peer-0": 1 / 3, "peer-1": 1 / 3, "peer-2": 1 / 3},
        lr_scale=1,
        diameter=3,
        layout=elected.layout.place_digest,
    )
    assert addresses == {f"peer-{k}": f"127.0.0.1:{7000 + k}" for k in range(4)}
    assert watches[0].waiting.get(timeout=PATIENCE_S)[1] == 4


def test_the_learning_rate_factor_is_exact_and_only_on_request(start: Any, line: Any) -> None:
    coordinator = start(f"peers = 4\n[optimizer]\nrelay_lr_correction = true\n{CHAIN}")
    clients = [line(coordinator.address) for _ in range(4)]
    watches = [join_and_watch(client, k) for k, client in enumerate(clients)]
    assert watches[2].next_view().lr_scale == Fraction(3, 2)


def test_two_trees_arrive_as_two(start: Any, line: Any) -> None:
    coordinator = start("peers = 2\n[topology]\ntree = 'double-binary-trees'\ngraph = 'complete'")
    watches = [join_and_watch(line(coordinator.address), k) for k in range(2)]
    assert watches[0].next_view().trees == ({"peer-1": 1}, {"peer-1": 1})


def test_a_change_brings_a_new_view(start: Any, line: Any) -> None:
    coordinator = start(f"peers = 2\n{CHAIN}")
    first, second = line(coordinator.address), line(coordinator.address)
    views = join_and_watch(first, 0)
    join_and_watch(second, 1)
    before = views.next_view()
    assert second.leave("peer-1", 3)
    after = views.next_view()
    assert coordinator.await_notice(Gone).reason is Reason.LEFT
    assert (after.epoch.number, list(after.members)) == (before.epoch.number + 1, ["peer-0"])


@pytest.mark.parametrize("keeps_its_file", [True, False])
def test_a_swarm_goes_on_after_its_coordinator_was_restarted(
    start: Any, line: Any, tmp_path: Path, keeps_its_file: bool
) -> None:
    path = tmp_path / "store" if keeps_its_file else None
    coordinator = start(f"peers = 2\n[coordinator]\nlease_s = 1.5\n{CHAIN}", path)
    clients = [line(coordinator.address) for _ in range(2)]
    watches = [join_and_watch(client, k) for k, client in enumerate(clients)]
    before = [watch.next_view() for watch in watches]
    coordinator.stop()
    coordinator.start()
    for k, client in enumerate(clients):
        while client.renew(renewal(k, before[k].epoch, step=40)) is not None:
            pass  # until the line is mended
        client.join(info(k, step=40, known_epoch=before[k].epoch))
        client.watch(f"peer-{k}", 3, **watches[k].callbacks())
    while watches[0].views.empty() or watches[1].views.empty():
        for k, client in enumerate(clients):
            assert client.renew(renewal(k, before[k].epoch, step=40)) is not None
    after = [watch.next_view() for watch in watches]
    assert coordinator.await_notice(Publication)  # of the first life
    published = coordinator.await_notice(Publication)
    assert published.elected.reason is Reason.RESTORED
    assert {view.epoch.digest for view in after} == {published.digest}
    assert all(a.epoch.age > b.epoch.age for a, b in zip(after, before, strict=True))
    assert all(view.effective_step >= 41 for view in after)


# --- leaving -------------------------------------------------------------------------------------


def test_the_last_to_finish_finishes_the_run(start: Any, line: Any) -> None:
    coordinator = start("peers = 1")
    client = line(coordinator.address)
    join_and_watch(client, 0).next_view()
    assert client.leave("peer-0", 3, finished=True)
    coordinator.await_notice(RunFinished)


def test_a_goodbye_that_nobody_hears_is_no_error(start: Any, line: Any) -> None:
    coordinator = start()
    client = line(coordinator.address)
    client.join(info(0))
    coordinator.stop()
    assert client.leave("peer-0", 3) is False


# --- broken streams ------------------------------------------------------------------------------


class Broken(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the cable was cut"


class Superseded(Broken):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.ABORTED


def member(peer: str, address: str = "127.0.0.1:9") -> pb.Member:
    return pb.Member(peer_id=peer, incarnation=1, address=address)


class Script:
    """A stream that gives what it was told to, and then breaks or waits to be cancelled."""

    def __init__(self, ages: list[tuple[int, int]], *, breaks: bool) -> None:
        self._ages, self._breaks = ages, breaks
        self.views: list[pb.View] = []
        self.error = Broken
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[pb.WatchTopologyResponse]:
        for view in self.views:
            yield pb.WatchTopologyResponse(view=view)
        for term, number in self._ages:
            view = pb.View(lr_factor="1", members=[member("peer-0")])
            view.epoch.term, view.epoch.number = term, number
            yield pb.WatchTopologyResponse(view=view)
        if not self._breaks:
            self._cancelled.wait(PATIENCE_S)
        raise self.error

    def cancel(self) -> bool:
        self._cancelled.set()
        return True


def test_no_view_is_handed_out_twice_nor_an_older_one_after_a_newer() -> None:
    scripts = [
        Script([(5, 1), (5, 2)], breaks=True),
        Script([(5, 2), (4, 9), (5, 1)], breaks=True),
        Script([(5, 2), (6, 1)], breaks=False),
    ]
    views = Views()
    watch = TopologyWatch(
        iter(scripts).__next__, "peer-0", seen=Epoch(5, 0), correct_lr=False, **views.callbacks()
    )
    watch.start()
    assert [views.next_view().epoch.age for _ in range(3)] == [(5, 1), (5, 2), (6, 1)]
    assert watch.end().age == (6, 1)
    assert views.views.empty()


def test_a_watch_that_is_said_to_be_superseded_goes_on() -> None:
    """By one of its own streams, which it had given up: nobody else tells it of a new epoch."""
    superseded = Script([(5, 1)], breaks=True)
    superseded.error = Superseded
    scripts, views = [superseded, Script([(5, 2)], breaks=False)], Views()
    watch = TopologyWatch(
        iter(scripts).__next__, "peer-0", seen=Epoch(5, 0), correct_lr=False, **views.callbacks()
    )
    watch.start()
    assert [views.next_view().epoch.age for _ in range(2)] == [(5, 1), (5, 2)]
    watch.end()


def test_a_watch_that_cannot_hand_out_a_view_says_so() -> None:
    """As where the certificates for a new neighbour's connection are gone."""
    error = ConfigError("--tls-ca", "ca.pem", "cannot be used", "name PEM files")

    def on_view(*_: object) -> None:
        raise error

    views = Views()
    watch = TopologyWatch(
        lambda: Script([(5, 1)], breaks=False),
        "peer-0",
        seen=Epoch(),
        correct_lr=False,
        **views.callbacks() | {"on_view": on_view},
    )
    watch.start()
    assert views.failed.get(timeout=PATIENCE_S) is error
    watch.end()


def test_a_view_from_the_wire_keeps_its_order() -> None:
    members = [member(peer) for peer in ("me", "a", "b", "peer-2", "peer-10")]
    message = pb.View(lr_factor="43/8", neighbours=["peer-2", "peer-10"], members=members)
    message.trees.add(neighbours=[pb.TreeNeighbour(peer_id=p, behind=1) for p in ("b", "a")])
    view = to_view(message, "me", correct_lr=True)
    assert (list(view.trees[0]), view.neighbours) == (["b", "a"], ("peer-2", "peer-10"))
    assert view.lr_scale == Fraction(43, 8)


NEIGHBOUR = pb.TreeNeighbour(peer_id="you", behind=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"members": [member("you")]},
        {"members": [member("me"), member("you"), member("me")]},
        {"members": [member("me"), member("you", "unix:/var/run/docker.sock")]},
        {"members": [member("me"), member("you", "dns://evil/you:1")]},
        {"neighbours": ["somebody"]},
        {"trees": [pb.Tree(neighbours=[pb.TreeNeighbour(peer_id="who", behind=1)])]},
        {"trees": [pb.Tree(neighbours=[pb.TreeNeighbour(peer_id="you", behind=2)])]},
        {"trees": [pb.Tree(neighbours=[pb.TreeNeighbour(peer_id="you", behind=0)])]},
        {"trees": [pb.Tree(neighbours=[NEIGHBOUR])] * 3},
        {"mixing": [pb.MixingWeight(peer_id="you", weight=float("nan"))]},
        {"lr_factor": "1e999999999"},
        {"lr_factor": "1/0"},
        {"lr_factor": ""},
        {"lr_factor": "9" * 400},  # more than a float holds
        {"lr_factor": "0"},
        {"members": [member("me"), member("you"), member("you\n\x1b[2J")]},
    ],
)
def test_a_view_that_cannot_be_is_passed_over(changes: dict[str, Any]) -> None:
    sound = {"lr_factor": "1", "members": [member("me"), member("you")], "neighbours": ["you"]}
    to_view(pb.View(**sound), "me")
    views, nonsense = Views(), pb.View(**(sound | changes), epoch={"term": 1, "number": 1})
    good = pb.View(**sound, epoch={"term": 1, "number": 2})
    stream = Script([], breaks=False)
    stream.views = [nonsense, good]
    watch = TopologyWatch(lambda: stream, "me", seen=Epoch(), correct_lr=False, **views.callbacks())
    watch.start()
    assert views.next_view().epoch.age == (1, 2)
    watch.end()


@pytest.mark.parametrize(
    "changes",
    [
        {"peer_id": "peer-1"},
        {"peer_id": "../../etc"},
        {"run_id": "other"},
        {"shard": 8},
        {"lease_ms": 0},
        {"donors": [member("you", "dns://evil/you:1")]},
        {"donors": [member("../you")]},
        {"run_config": "peers = 0"},
        {"run_config": "x = " + "[" * 100_000},
    ],
)
def test_an_answer_that_cannot_be_is_one_clear_error(line: Any, changes: dict[str, Any]) -> None:
    sound = {"peer_id": "peer-0", "run_id": "run", "run_config": "", "lease_ms": 1000}
    answer = pb.JoinResponse(**(sound | changes))
    join = grpc.unary_unary_rpc_method_handler(
        lambda _, __: answer,
        pb.JoinRequest.FromString,
        pb.JoinResponse.SerializeToString,
    )
    service = "relayswarm.coordinator.v1.CoordinatorService"
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        handler = grpc.method_handlers_generic_handler(service, {"Join": join})
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with pytest.raises(RelayswarmError):
            line(f"127.0.0.1:{port}").join(info(0))
        server.stop(None)
