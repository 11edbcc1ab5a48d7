"""Targets: between peers and their coordinator. Its views and answers; its callers' requests."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from google.protobuf.message import DecodeError, Message
from prometheus_client import generate_latest
from rich.console import Console

from coordinator import status
from coordinator.announcer import Announcer
from coordinator.conductor import Conductor, Notice, Publication
from coordinator.dial_back import DialBack
from coordinator.members import Tick
from coordinator.messages import view_message
from coordinator.metrics import Metrics
from coordinator.service import CoordinatorService, status_of
from coordinator.store import Memory
from peer.algorithms.core import Epoch, View
from peer.codec.edges import Forecast, LatticeSetting
from peer.transport import coordinator_client
from peer.transport.contract import PeerState
from peer.transport.coordinator_client import CoordinatorClient, JoinInfo, Renewal
from peer.transport.sender import LONGEST_RETRY_S, SHORTEST_RETRY_S, retry_s
from peer.transport.topology_watch import TopologyWatch, to_view
from peer.transport.wire import verdict_of
from relayswarm import config as run_config
from relayswarm.config import RunConfig
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.errors import ConfigError, JoinError
from relayswarm.net.gate import Gate
from relayswarm.net.security import PLAIN
from relayswarm.peer.v1 import peer_pb2
from tests.fuzz.calls import Aborted, Context, packed, unpacked
from tests.fuzz.payloads import head_of

# --- views ----------------------------------------------------------------------------------------


def views(data: bytes) -> bool:
    """A view of the topology, as the coordinator sends it."""
    try:
        view = to_view(pb.View.FromString(data), "me", correct_lr=True)
    except (DecodeError, ValueError, ConfigError):
        return False
    assert view.me in view.members
    assert 1 <= float(view.lr_scale) < math.inf
    return True


def view(**changes: Any) -> pb.View:
    members = [
        pb.Member(peer_id=peer, incarnation=1, address="127.0.0.1:1") for peer in ("me", "you")
    ]
    given: dict[str, Any] = {
        "epoch": peer_pb2.Epoch(term=1, number=2, digest=3),
        "members": members,
        "trees": [pb.Tree(neighbours=[pb.TreeNeighbour(peer_id="you", behind=1)])],
        "neighbours": ["you"],
        "mixing": [pb.MixingWeight(peer_id="you", weight=0.5)],
        "diameter": 1,
        "lr_factor": "3/2",
        "reason": "quorum",
    }
    return pb.View(**(given | changes))


def view_seeds() -> Iterator[bytes]:
    yield view().SerializeToString()


# --- answers --------------------------------------------------------------------------------------


def watched(parts: list[bytes]) -> bool:
    """Responses of WatchTopology, in order."""
    seen: list[View] = []

    def on_view(view: View, addresses: dict[str, str]) -> None:
        assert not seen or view.epoch.age > seen[-1].epoch.age, "an older one, or one twice"
        assert addresses.keys() == view.members.keys()
        seen.append(view)

    def no_stream() -> NoReturn:
        raise AssertionError("nobody asked for one")

    watch = TopologyWatch(
        no_stream,
        "me",
        seen=Epoch(),
        correct_lr=True,
        on_view=on_view,
        on_waiting=lambda present, needed: None,  # noqa: ARG005
        on_no_tree=lambda text: None,  # noqa: ARG005
        on_failed=lambda error: None,  # noqa: ARG005
        on_stop=lambda step: None,  # noqa: ARG005
    )
    for part in parts:
        watch._take(pb.WatchTopologyResponse.FromString(part))
    return bool(seen)


class Coordinator:
    """A stub that answers each call with the next of some bytes."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = iter(parts)

    def Join(self, request: pb.JoinRequest, **_: Any) -> pb.JoinResponse:  # noqa: ARG002
        return pb.JoinResponse.FromString(next(self._parts, b""))

    def RenewLease(self, request: pb.RenewLeaseRequest, **_: Any) -> pb.RenewLeaseResponse:  # noqa: ARG002
        return pb.RenewLeaseResponse.FromString(next(self._parts, b""))


def joined(parts: list[bytes]) -> bool:
    """A response of Join, then those of RenewLease."""
    stub: Any = Coordinator(parts)
    client = CLIENT
    client._stubs = [stub]
    try:
        answer = client.join(JoinInfo(1, "me", "127.0.0.1:1", fingerprint=7), patience_s=0.0)
    except (JoinError, ConfigError):
        return False
    assert answer.run_id == run_config.parse(answer.run_config).run_id
    assert coordinator_client.SHORTEST_LEASE_S <= answer.lease_s < 2**32
    for _ in parts[1:]:
        lease_s = client.renew(Renewal(1, PeerState("me", 1, Epoch(), 0, "training")))
        assert lease_s is not None
        assert coordinator_client.SHORTEST_LEASE_S <= lease_s < 2**32
    return True


CLIENT = CoordinatorClient("127.0.0.1:1")  # connects at its first call, which it never makes


def answered(parts: list[bytes]) -> bool:
    """What a neighbour answers to messages on the lattice."""
    forecast = Forecast(LatticeSetting(), 3, "you")
    accepted = False
    for step, part in enumerate(parts):
        response = peer_pb2.RelayResponse.FromString(part)
        head = head_of(step=step)
        accepted |= verdict_of(response) is not None
        assert SHORTEST_RETRY_S <= retry_s(response, step) <= LONGEST_RETRY_S
        if len(response.max_distances) == 1:
            forecast.answered(head, response.max_distances)
        coding = forecast.coding(head_of(step=step + 1), 1, response.wanted_bits or None)
        assert coding is None or all(0 <= far < math.inf for far in coding.expected)
    return accepted


def told(parts: list[bytes]) -> bool:
    """What `relayswarm status` is answered."""
    for part in parts:
        response = pb.GetStatusResponse.FromString(part)
        json.loads(status.to_json(response))
        with io.StringIO() as text:
            status.show(response, Console(file=text))
    return True


ANSWERS: tuple[Callable[[list[bytes]], bool], ...] = (watched, joined, answered, told)


def answers(data: bytes) -> bool:
    """What servers answer a peer: to which call by the first byte, then responses, each after its
    length."""
    if not data:
        return False
    try:
        return ANSWERS[data[0] % len(ANSWERS)](list(unpacked(data[1:])))
    except DecodeError:
        return False


def answer_seeds() -> Iterator[bytes]:
    waiting = pb.Waiting(present=1, needed=2)
    later = view(epoch=peer_pb2.Epoch(term=1, number=3, digest=4))
    config = 'run_id = "run"\npeers = 2\n[topology]\ngraph = "chain"\n'
    donors = [pb.Member(peer_id="you", incarnation=1, address="127.0.0.1:2")]
    member = pb.MemberStatus(
        member=donors[0], step=3, loss=0.5, state="training", swarm_metrics=swarm_metrics()
    )
    whole = pb.GetStatusResponse(run_id="run", state="running", needed=2, members=[member])
    whole.epoch.number = 1
    whole.trees.append(pb.Tree(edges=[pb.Edge(from_peer_id="me", to_peer_id="you")]))
    seeds: list[list[Message]] = [
        [
            pb.WatchTopologyResponse(waiting=waiting),
            *(pb.WatchTopologyResponse(view=one) for one in (view(), view(), later)),
        ],
        [
            pb.JoinResponse(
                protocol_version=1,
                run_id="run",
                peer_id="me",
                run_config=config,
                shard=1,
                lease_ms=4000,
                donors=donors,
            ),
            pb.RenewLeaseResponse(lease_ms=4000),
        ],
        [
            peer_pb2.RelayResponse(verdict=peer_pb2.VERDICT_ACCEPTED, max_distances=[0.5]),
            peer_pb2.RelayResponse(verdict=peer_pb2.VERDICT_BUSY, retry_after_ms=50),
            peer_pb2.RelayResponse(verdict=peer_pb2.VERDICT_DECODE_FAILED, wanted_bits=16),
        ],
        [whole],
    ]
    for number, messages in enumerate(seeds):
        yield bytes([number]) + packed(message.SerializeToString() for message in messages)


# --- requests -------------------------------------------------------------------------------------

CONFIG = run_config.parse(
    "", ['run_id="run"', "peers=2", 'topology.graph="chain"', "coordinator.lease_s=4"]
)
UNIT_S = 0.25  # of an input's times
MOST_TICKS = 200  # in the time that may pass between two requests


class NoStore:
    """Of a run that begins."""

    is_shared = False

    def lead(self, *_: object) -> bool:
        return True

    def stored_config(self) -> RunConfig | None:
        return None

    def open_run(self, config: RunConfig, first_term: int) -> Memory:  # noqa: ARG002
        return Memory(7, 0, 0)

    def save(self, memory: Memory) -> None: ...
    def close(self) -> None: ...


class Nobody(DialBack):
    """Calls nobody back."""

    def problem(self, caller: str, address: str, peer_id: str, nonce: str) -> str:  # noqa: ARG002
        return "nobody answers there"


class Caller(Context):
    """Who hangs up as soon as it is told to wait."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5"

    def is_active(self) -> bool:
        return False

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        for key, value in metadata:
            assert key.isascii()
            assert value.isascii()


class Court:
    """A coordinator without sockets, its listeners, and a clock."""

    def __init__(self) -> None:
        self.now, self.epochs = 1000.0, 0
        self._age = (0, 0)
        self.conductor = Conductor(CONFIG, NoStore(), clock=lambda: self.now)
        self._lines = io.StringIO()
        self._metrics = Metrics(self.conductor)
        self.conductor.listeners += [self._notice, self._metrics, Announcer(self._lines)]
        gate = Gate(None, lambda *_: None)
        self.service = CoordinatorService(self.conductor, gate, Nobody(PLAIN))

    def _notice(self, notice: Notice) -> None:
        if not isinstance(notice, Publication):
            return
        self.epochs += 1
        age = (notice.elected.term, notice.elected.number)
        assert age > self._age, "an epoch went backwards"
        self._age = age
        for peer in notice.layout.members:
            message = view_message(notice.elected, notice.layout, notice.digest, peer)
            view = to_view(pb.View.FromString(message.SerializeToString()), peer, correct_lr=True)
            assert view.effective_step <= notice.elected.effective_step < 2**62

    def pass_time(self, seconds: float) -> None:
        until, membership = self.now + seconds, self.conductor.membership
        for _ in range(MOST_TICKS):
            deadline = membership.next_deadline()
            if deadline is None or deadline > until:
                self.now = until
                return
            self.now = max(self.now, deadline)
            self.conductor.handle(Tick())
        raise AssertionError("it does not come to rest")

    def look(self) -> None:
        """What people and programs are shown is what they can read."""
        generate_latest(self._metrics.registry)
        shown = status.to_dict(status_of(self.conductor))
        assert len(shown["members"]) <= 2 * self.conductor.rules.max_members
        json.dumps(shown, allow_nan=False)
        for line in self._lines.getvalue().splitlines():
            json.loads(line)


REQUESTS: tuple[tuple[str, type[Message]], ...] = (
    ("Join", pb.JoinRequest),
    ("RenewLease", pb.RenewLeaseRequest),
    ("Leave", pb.LeaveRequest),
    ("WatchTopology", pb.WatchTopologyRequest),
    ("GetStatus", pb.GetStatusRequest),
    ("CheckReachability", pb.CheckReachabilityRequest),
)


def requests(data: bytes) -> bool:
    """Requests to a coordinator, each after its length and a byte that says which it is, and how
    much time passes before it."""
    court = Court()
    for part in unpacked(data):
        if not part:
            continue
        elapsed, which = divmod(part[0], 8)
        court.pass_time(elapsed * UNIT_S)
        name, kind = REQUESTS[which % len(REQUESTS)]
        try:
            answer = getattr(court.service, name)(kind.FromString(part[1:]), Caller())
            for message in answer if name == "WatchTopology" else (answer,):
                message.SerializeToString()
        except (Aborted, DecodeError):
            pass
    court.pass_time(CONFIG.coordinator.lease_s)
    court.look()
    return court.epochs > 0


def evaluation() -> pb.Evaluation:
    metric = pb.EvaluatedMetric(name="accuracy", value=0.5, weight=2.0)
    return pb.Evaluation(step=3, metrics=[metric])


def swarm_metrics() -> peer_pb2.SwarmMetrics:
    metric = peer_pb2.SwarmMetric(name="accuracy", mean=0.5, weight=2.0, peers=2)
    return peer_pb2.SwarmMetrics(step=3, peers=2, metrics=[metric])


def join_of(number: int, **changes: Any) -> pb.JoinRequest:
    given: dict[str, Any] = {
        "min_protocol_version": 1,
        "max_protocol_version": 1,
        "run_id": "run",
        "peer_id": f"peer-{number}",
        "advertised_address": f"127.0.0.1:{number + 1}",
        "model_fingerprint": 7,
        "incarnation": 1,
    }
    return pb.JoinRequest(**(given | changes))


def renewal_of(number: int, **changes: Any) -> pb.RenewLeaseRequest:
    given: dict[str, Any] = {
        "run_id": "run",
        "peer_id": f"peer-{number}",
        "incarnation": 1,
        "step": 9,
        "loss": 0.5,
        "state": "training",
        "models_counted": 2,
        "steps_per_s": 2.5,
        "swarm_metrics": swarm_metrics(),
        "evaluation": evaluation(),
    }
    return pb.RenewLeaseRequest(**(given | changes))


def request_seeds() -> Iterator[bytes]:
    names = [name for name, _ in REQUESTS]

    def line(*asked: tuple[int, str, Message]) -> bytes:
        return packed(
            bytes([8 * elapsed + names.index(name)]) + message.SerializeToString()
            for elapsed, name, message in asked
        )

    both: list[tuple[int, str, Message]] = [(1, "Join", join_of(0)), (0, "Join", join_of(1))]
    yield line(
        *both,
        (1, "RenewLease", renewal_of(0)),
        (
            0,
            "WatchTopology",
            pb.WatchTopologyRequest(run_id="run", peer_id="peer-0", incarnation=1),
        ),
        (4, "RenewLease", renewal_of(0, step=12, unreachable=["peer-1"])),
        (8, "RenewLease", renewal_of(0, step=15, unreachable=["peer-1"])),
        (0, "Join", join_of(2, incarnation=3)),
        (4, "Leave", pb.LeaveRequest(run_id="run", peer_id="peer-2", incarnation=3)),
        (0, "GetStatus", pb.GetStatusRequest()),
    )
    seats = [
        peer_pb2.Seat(peer_id=f"peer-{k}", incarnation=1, address=f"127.0.0.1:{k + 1}")
        for k in range(2)
    ]
    edge = peer_pb2.MemberPair(a=0, b=1)
    tree = peer_pb2.CommittedTree(
        epoch=peer_pb2.Epoch(term=9, number=2**16),
        root="peer-0",
        members=seats,
        edges=[edge],
        links=[edge],
        step=20,
        effective_step=22,
    )
    back = {"epoch": tree.epoch, "tree": tree, "step": 20}
    yield line(
        (1, "Join", join_of(0, **back)),
        (0, "Join", join_of(1, **back)),
        *((4, "RenewLease", renewal_of(k, step=25, tree=tree)) for k in (0, 1)),
    )
    yield line(*both, (4, "RenewLease", renewal_of(0, tree=tree)), (0, "Join", join_of(1)))
    asked = pb.CheckReachabilityRequest(advertised_address="127.0.0.1:2", nonce="a" * 16)
    yield line(*both, (0, "CheckReachability", asked))
