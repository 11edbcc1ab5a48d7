"""Target: BPDUs of neighbours, through the service into a bridge that has no coordinator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from coordinator.spanning_tree import Bpdu
from peer.healing import (
    Adopt,
    Event,
    Healer,
    Heard,
    Led,
    Say,
    Tick,
    Timers,
    Viewed,
)
from peer.hellos import (
    MAX_MEMBERS,
    Commit,
    Hello,
    Node,
    Seat,
    bridge_id,
)
from peer.transport.bpdus import parse_hello, request_of
from peer.transport.collectors import Collectors
from peer.transport.intake import Intake
from peer.transport.service import PeerService
from peer.transport.visits import Visits
from peer.views import committed_view
from relayswarm import config as run_config
from relayswarm.net.gate import Gate
from relayswarm.peer.v1 import peer_pb2 as pb
from tests.fuzz.calls import Aborted, Context, packed, unpacked
from tests.fuzz.payloads import CONTRACTS, Handler

CONFIG = run_config.parse("", ['run_id="run"', "peers=3", "topology.self_heal=true"])
TIMERS = Timers(hello_s=0.5, max_age_s=2.0)
SEATS = tuple(Seat(f"peer-{k}", 7, f"127.0.0.1:{k + 1}") for k in range(3))
LED = (5, 2)  # the epoch that a coordinator published before it was gone
OWN, HEALED = 3 << 16, (6, 2**16)
UNIT_S = 0.02  # of an input's times
MOST_TICKS = 1000  # in the 5 s that may pass between two BPDUs


class Bridge(Handler):
    """The middle one of three peers on a chain, and a clock."""

    def __init__(self) -> None:
        super().__init__(CONTRACTS[0])
        self.now, self.heard = 0.0, 0
        self._me = SEATS[1]
        self._healer = Healer(self._me, 3, TIMERS)
        ends = ("peer-0", "peer-2")
        self._feed(Viewed(LED, SEATS, frozenset(ends), ends))
        self._feed(Led(False))

    def greeted(self, hello: Hello) -> bool:
        self.heard += 1
        self._feed(Heard(hello))
        return True

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(MOST_TICKS):
            deadline = self._healer.next_deadline()
            assert deadline is not None, "nobody leads, and it waits for nothing"
            if deadline > until:
                self.now = until
                return
            self.now = max(self.now, deadline)
            self._feed(Tick())
        raise AssertionError("it does not come to rest")

    def _feed(self, event: Event) -> None:
        before = self._healer.held
        for effect in self._healer.handle(event, self.now):
            match effect:
                case Say(_, hello):
                    wire = request_of(hello, "run").SerializeToString()
                    assert parse_hello(pb.SendBpduRequest.FromString(wire)) == hello
                case Adopt(commit):
                    assert commit.age > before, "a tree that was left behind"
                    view = committed_view(CONFIG, commit, self._me.peer)
                    assert view.members[self._me.peer] == self._me.incarnation
        assert self._healer.held >= before
        assert len(self._healer.known) <= MAX_MEMBERS


def bpdus(data: bytes) -> bool:
    """Requests of SendBpdu, each after its length and the time that passes before it."""
    bridge = Bridge()
    contract = CONTRACTS[0]
    service = PeerService(
        Intake(bridge, contract), Visits(), Collectors(), Gate(None, bridge.denied)
    )
    context: Any = Context()
    for part in unpacked(data):
        bridge.pass_time(part[0] * UNIT_S if part else 0.0)
        with suppress(Aborted, DecodeError):
            service.send_bpdu(pb.SendBpduRequest.FromString(part[1:]), context)
    bridge.pass_time(TIMERS.max_age_s)
    return bridge.heard > 0


def hello_of(seat: Seat, **changes: Any) -> Hello:
    """Of a neighbour that takes peer-0 for the root."""
    is_root = seat.peer == "peer-0"
    hello = Hello(
        seat=seat,
        beat=1,
        bpdu=Bpdu(bridge_id("peer-0"), 0 if is_root else 2, bridge_id(seat.peer), 1),
        root_beat=(7, 1),
        parent="" if is_root else "peer-1",
        hears=True,
        largest=LED,
        held=LED,
        step=40,
        rate=2.5,
    )
    return replace(hello, **changes)


def bpdu_seeds() -> Iterator[bytes]:
    edges = (("peer-0", "peer-1"), ("peer-1", "peer-2"))
    commit = Commit(HEALED, "peer-0", SEATS, edges, edges, 40, 44)
    below = Node(SEATS[2], "peer-1", ("peer-1",), LED, True)
    alone = replace(SEATS[2], incarnation=8)
    rounds = {
        "a parent, a child, and the tree": [
            (5, hello_of(SEATS[0])),
            (0, hello_of(SEATS[2])),
            (60, hello_of(SEATS[0], beat=2, root_beat=(7, 2))),
            (0, hello_of(SEATS[2], beat=2, root_beat=(7, 2))),
            (60, hello_of(SEATS[2], beat=3, root_beat=(7, 3), report=(below,))),
            (0, hello_of(SEATS[0], beat=3, root_beat=(7, 3), commit=commit, largest=HEALED)),
            (5, hello_of(SEATS[2], beat=4, root_beat=(7, 3), held=HEALED)),
        ],
        "a child alone, in another life": [
            (40, hello_of(alone, beat=k + 1, **child_of_us(k, alone))) for k in range(6)
        ],
    }
    for hellos in rounds.values():
        yield packed(
            bytes([wait]) + request_of(hello, "run").SerializeToString() for wait, hello in hellos
        )


def child_of_us(beat: int, seat: Seat) -> dict[str, Any]:
    """What a neighbour says that takes us for the root."""
    ours = Bpdu(bridge_id("peer-1"), 1, bridge_id(seat.peer), 1)
    report = (Node(seat, "peer-1", ("peer-1",), LED, False),) if beat > 3 else None
    return {"bpdu": ours, "root_beat": (7, beat), "report": report}
